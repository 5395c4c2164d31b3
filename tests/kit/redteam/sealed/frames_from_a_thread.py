"""A thread answers the judge in the meantime, always that all is well.

Must: no task passes, and nothing is touched.
"""

import json
import os
import struct
import threading
import time

head = json.dumps([{"is": "value", "value": True, "asks": [], "call": 1}, []]).encode()


def answer():
    while True:
        time.sleep(0.001)
        os.write(3, struct.pack("<QQ", len(head), 0) + head)


threading.Thread(target=answer, daemon=True).start()
