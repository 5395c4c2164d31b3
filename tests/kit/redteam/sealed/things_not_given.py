"""A reply names tensors, functions and modules that there are not.

Must: no task passes, and nothing is touched.
Says: the process that runs it has ended
"""

import json
import os
import struct

replies = [
    {"is": "value", "value": ["t", 7]},
    {"is": "back", "of": 3, "value": ["l"]},
    {"is": "value", "value": ["o", -1, "module", "a", [["b.c", 1]], [["x", 9, 1]], []]},
    {"is": "error", "kinds": 3, "text": []},
    {"is": []},
    [],
]
count = 0


def softmax(x, *, temperature=1.0):
    global count
    head = json.dumps([replies[count % len(replies)], []]).encode()
    count += 1
    os.write(3, struct.pack("<QQ", len(head), 0) + head)
    return x


entropy = softmax
