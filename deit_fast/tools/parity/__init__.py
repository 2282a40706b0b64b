"""The same files through `predict` and through every export: which bytes, logits and answers differ, and where."""
