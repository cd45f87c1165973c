"""Readers that any family uses: rows of annotation files, pictures, formats, shared prompts."""
