"""Questions about documents, charts and scene text, and counting."""
