"""Augmentation: a plan says what happens to each image, `apply` executes it, exact to Pillow's pixels."""
