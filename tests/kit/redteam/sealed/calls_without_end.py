"""The judge is called back, for functions that it has not lent, before anything is answered.

Must: no task passes, and nothing is touched.
Says: it calls a function that it was not given
"""

import json
import os
import struct

head = json.dumps([{"is": "back", "of": 0, "value": ["l", ["l"], ["d"]]}, []]).encode()


def softmax(x, *, temperature=1.0):
    while True:
        os.write(3, struct.pack("<QQ", len(head), 0) + head)


entropy = softmax
