"""Readers of what can be written to a dataset file: folders, lists, archives, arrays and Parquet files."""
