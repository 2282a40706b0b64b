"""The demo: a teacher, a student that learns from it, and the same student without it."""
