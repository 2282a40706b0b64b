"""Looks after data sets: `deit-fast data check`, `pack` and `preview`."""
