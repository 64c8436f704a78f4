"""SimCLR and MoCo v2: two views of an image are compared with those of other images."""
