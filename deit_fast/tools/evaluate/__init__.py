"""Every score of any models on any data: all heads, moving average, teacher, in one pass."""
