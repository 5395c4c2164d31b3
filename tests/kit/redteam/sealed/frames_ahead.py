"""Answers are written into the connection before they are asked for.

Must: no task passes, and nothing is touched.
"""

import json
import os
import struct

head = json.dumps([{"is": "value", "value": None, "asks": [], "call": 1}, []]).encode()
os.write(3, (struct.pack("<QQ", len(head), 0) + head) * 50)
