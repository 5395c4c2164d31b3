"""What other processes are called, and where they work, is read.

Must: no task passes, and nothing is touched.
"""

import os

from targets import JUDGE, reached

for start in ("/proc", "/proc/self/fd", "/proc/self/task", "/sys/fs/cgroup"):
    try:
        if os.listdir(start):
            reached(start)
    except OSError:
        pass
for path in ("/proc/1/cmdline", "/proc/self/mountinfo", f"/proc/{JUDGE}/cwd/tests"):
    try:
        os.open(path, os.O_RDONLY)
        reached(path)
    except OSError:
        pass
