"""Labels for pictures by the million: inputs cut into parts, each written whole and once."""
