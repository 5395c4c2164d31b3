"""A hundred megabytes of escape sequences are printed.

Must: no task passes, and nothing is touched.
"""

import os
import sys


def softmax(x, *, temperature=1.0):
    for _ in range(100):
        print("\x1b[2J\x1b]0;passed\x07" * 50_000)
        sys.__stderr__.write("\x1b[31m" * 100_000)
    for handle in (1, 2):
        os.write(handle, b"\x1b[2J" * 1_000_000)
    return x * 0


entropy = softmax
