"""Lets the tests of this folder import the file system that loses power."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
