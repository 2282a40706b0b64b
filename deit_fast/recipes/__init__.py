"""Named trainings: the paper's, the official code's, and small ones that run anywhere."""
