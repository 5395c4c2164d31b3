"""The kit's kernels are interpreted, which must be said before triton is imported."""

import os
import sys

assert "triton" not in sys.modules, "something imported triton before the tests of the lanes"
os.environ["TRITON_INTERPRET"] = "1"
