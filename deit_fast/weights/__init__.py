"""A model from a name or a path: built, its weights read, its classes and normalisation known."""
