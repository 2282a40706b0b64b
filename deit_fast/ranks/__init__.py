"""The processes of a run: they start, find each other, share the cores and end together."""
