"""A frame holds lists in lists, deeper than a stack.

Must: no task passes, and nothing is touched.
Says: a frame is no JSON
"""

import os
import struct


def softmax(x, *, temperature=1.0):
    head = b"[" * 1_000_000
    os.write(3, struct.pack("<QQ", len(head), 0))
    for start in range(0, len(head), 1000):
        os.write(3, head[start : start + 1000])
    return x


entropy = softmax
