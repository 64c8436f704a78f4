"""What a data set and a source of samples must offer."""
