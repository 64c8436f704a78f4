"""Files as such: written whole or not at all, read within bounds, kept in caches."""
