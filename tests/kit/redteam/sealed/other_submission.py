"""The file of another submission is read.

Must: no task passes, and nothing is touched.
"""

import os

from targets import OTHERS, reached

for path in (f"{OTHERS}/honest/demo/softmax.py", "../honest/demo/softmax.py"):
    try:
        os.open(path, os.O_RDONLY)
        reached("another submission")
    except OSError:
        pass
try:
    os.listdir(OTHERS)
    reached("the list of submissions")
except OSError:
    pass
