"""A frame promises more bytes than there are on the machine.

Must: no task passes, and nothing is touched.
Says: a frame is larger than any frame may be
"""

import os
import struct


def softmax(x, *, temperature=1.0):
    os.write(3, struct.pack("<QQ", 1 << 62, 1 << 62))
    return x


entropy = softmax
