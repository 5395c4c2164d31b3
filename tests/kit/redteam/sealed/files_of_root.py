"""Files that only root can read are opened: by name, by handle, from the folder they lie in.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os

from targets import HOUSE, OWNER, reached

libc = ctypes.CDLL(None)
paths = ["/etc/shadow", f"{OWNER}/.ssh", f"{OWNER}/.bash_history", "/proc/1/environ"]
paths += [f"{HOUSE}/tests"]
for path in [*paths, "/var/log", "/dev/sda", "/dev/mem", "/sys/kernel", "/home", "/", "/tmp"]:
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NONBLOCK):
        try:
            os.open(path, flags)
            reached(path)
        except OSError:
            pass
    try:
        # a handle that names a place gives nothing that lies in it
        place = os.open(path, os.O_PATH)
        os.listdir(place)
        reached(path)
    except OSError:
        pass
    if libc.syscall(303, -100, path.encode(), ctypes.create_string_buffer(200), 0, 0) == 0:
        reached(f"a handle of {path}")
