"""Builds the binaries of deit_kernels, as the setup.py of the folder above says."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "setup.py"))
