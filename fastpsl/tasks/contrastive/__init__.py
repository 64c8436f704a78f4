"""SimCLR and MoCo v2: views of one image against those of others."""
