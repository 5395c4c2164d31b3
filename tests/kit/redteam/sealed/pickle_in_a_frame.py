"""A pickle that runs a program takes the place of the JSON.

Must: no task passes, and nothing is touched.
Says: a frame is no JSON
"""

import os
import pickle
import struct

from targets import DROP


class Program:
    def __reduce__(self):
        return os.system, (f"touch {DROP}/pickle",)


def softmax(x, *, temperature=1.0):
    head = pickle.dumps(Program())
    os.write(3, struct.pack("<QQ", len(head), 0) + head)
    return x


entropy = softmax
