"""Data sets: the interface, folders and lists of images, and subsets."""
