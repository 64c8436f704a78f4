"""sslpp."""
