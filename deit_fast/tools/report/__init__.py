"""A run as one HTML page: its scores, curves, mistakes and suspects, and runs beside each other."""
