"""beton."""
