"""The user is changed back, capabilities are taken, a program that would give them is run.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os
import struct

from targets import reached

libc = ctypes.CDLL(None)
if 0 in (*os.getresuid(), *os.getresgid()):
    reached("root")
for call in (os.setuid, os.seteuid, os.setgid, os.setegid):
    try:
        call(0)
        reached(call.__name__)
    except OSError:
        pass
for number in (113, 114, 117, 119):  # setreuid, setregid, setresuid, setresgid
    if libc.syscall(number, 0, 0, 0) == 0:
        reached("root")
header, sets = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", *6 * [0xFFFFFFFF])
if libc.capset(header, sets) == 0:
    reached("all capabilities")
for path in ("/bin/su", "/usr/bin/sudo", "/usr/bin/bwrap", "/usr/bin/newuidmap"):
    for call in (os.execv, lambda path, words: os.posix_spawn(path, words, {})):
        try:
            call(path, [path])
            reached(path)
        except OSError:
            pass
