"""What users of other libraries expect of our ops, tried out and written down as a page."""
