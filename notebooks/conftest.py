"""Stored outputs are those of the shipped weights, whatever was trained in runs/ of this copy."""

import atexit
import os
import shutil
import tempfile

if "SEEDX_LITE_RUNS" not in os.environ:
    os.environ["SEEDX_LITE_RUNS"] = tempfile.mkdtemp(prefix="seedx_lite-")
    atexit.register(shutil.rmtree, os.environ["SEEDX_LITE_RUNS"], ignore_errors=True)
