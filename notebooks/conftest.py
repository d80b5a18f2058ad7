"""Stored outputs are those of the shipped weights, whatever was trained in runs/ of this copy."""

import os
import tempfile

os.environ.setdefault("SEEDX_LITE_RUNS", tempfile.mkdtemp(prefix="seedx_lite-"))
