"""What a data set is, and those that are no betons: folders and lists of images, subsets of any."""
