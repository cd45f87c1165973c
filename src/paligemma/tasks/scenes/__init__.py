"""The bundled benchmark: drawn pictures."""
