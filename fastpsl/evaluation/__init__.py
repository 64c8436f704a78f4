"""What learned features are worth."""
