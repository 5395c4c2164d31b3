"""A frame names tensors that it does not hold, of shapes that no memory has.

Must: no task passes, and nothing is touched.
Says: a frame holds tensors larger than any may be
"""

import json
import os
import struct


def softmax(x, *, temperature=1.0):
    tensors = [["float64", [1 << 26, 1 << 26], [0, 0]]]
    head = json.dumps([{"is": "value", "value": ["t", 0], "asks": [False]}, tensors]).encode()
    os.write(3, struct.pack("<QQ", len(head), 8) + head + bytes(8))
    return x


entropy = softmax
