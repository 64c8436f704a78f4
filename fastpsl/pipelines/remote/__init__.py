"""Data that live elsewhere (s3://, gs://, hf://, https://), read through fsspec and a cache on local disk."""
