"""Puts this folder on the path, so that the tests here and in `interpreter/` can import `loss_cases`."""
