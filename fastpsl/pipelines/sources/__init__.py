"""The sources of the images that are written to a beton: folders, tars, arrays, parquet files."""
