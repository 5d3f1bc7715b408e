"""SimCLR: contrast of two views of each image, without labels and texts."""
