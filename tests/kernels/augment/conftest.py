"""Puts this folder on the path, so that the tests here can import `augment_cases`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
