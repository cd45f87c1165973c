"""Pictures with structure: words, tables, molecules, music."""
