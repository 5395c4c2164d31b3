"""Files are deleted, emptied, renamed and made unreadable.

Must: no task passes, and nothing is touched.
"""

import os
import shutil

from targets import CANARY, HOUSE, reached

for act in (
    lambda: os.remove(CANARY),
    lambda: os.truncate(CANARY, 0),
    lambda: os.rename(CANARY, CANARY + "-gone"),
    lambda: os.chmod(CANARY, 0),
    lambda: open(CANARY, "w").close(),
    lambda: os.utime(CANARY),
    lambda: os.link(CANARY, CANARY + "-too"),
    lambda: os.symlink("/etc/passwd", CANARY + "-link"),
    lambda: os.mkdir(CANARY + "-folder"),
    lambda: shutil.rmtree(HOUSE),
):
    try:
        act()
        reached("a file")
    except OSError:
        pass
