"""The frames that called are searched for what is expected.

Must: no task passes, and nothing is touched.
"""

import sys

from targets import reached


def softmax(x, *, temperature=1.0):
    frame = sys._getframe()
    while frame:
        for name in ("expected", "reference", "wanted", "item"):
            if name in frame.f_locals:
                reached(name)
        frame = frame.f_back
    return x * 0


entropy = softmax
