"""The sources of the images that are written to a dataset file: folders, tars, arrays, parquet files."""
