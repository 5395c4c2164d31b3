"""An answer arrives a byte at a time, and never ends.

Must: no task passes, and nothing is touched.
Says: did not come to an end
"""

import os
import struct
import time


def softmax(x, *, temperature=1.0):
    os.write(3, struct.pack("<QQ", 1 << 20, 0))
    while True:
        os.write(3, b" ")
        time.sleep(0.1)


entropy = softmax
