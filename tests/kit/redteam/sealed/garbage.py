"""The connection is filled with bytes that mean nothing.

Must: no task passes, and nothing is touched.
Says: a frame is larger than any frame may be
"""

import os


def softmax(x, *, temperature=1.0):
    os.write(3, bytes(range(256)) * 100)
    return x


entropy = softmax
