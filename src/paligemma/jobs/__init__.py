"""Work over many rows: a plan of batches, a folder that survives a kill, processes and machines."""
