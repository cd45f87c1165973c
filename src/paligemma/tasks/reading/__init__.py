"""Reading the files of any benchmark: layouts, pictures, and the texts that many share."""
