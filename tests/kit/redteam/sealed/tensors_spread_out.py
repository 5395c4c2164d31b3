"""A frame tells of tensors that lie so far apart, or have so long empty axes, that to hold a few
bytes of them takes all memory.

Must: no task passes, and nothing is touched.
Says: larger than any may be
"""

import json
import os
import struct

described = [
    [["float64", [0, 1 << 26], []]],
    [["float64", [1 << 22, 2], [32, 1]]],
    [["float64", [1 << 20, 1], [0, 0]]] * 1000,
    [["uint8", [1 << 26, 0, 1 << 26, 1 << 26], []]],
]


def softmax(x, *, temperature=1.0):
    head = json.dumps([{"is": "value"}, described[x.numel() % len(described)]]).encode()
    os.write(3, struct.pack("<QQ", len(head), 0) + head)
    return x * 0


entropy = softmax
