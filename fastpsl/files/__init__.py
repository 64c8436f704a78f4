"""Bytes on disks and servers: paths, whole files, caches and addresses."""
