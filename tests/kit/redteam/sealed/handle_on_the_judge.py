"""The connection is asked for a handle on the process at its other end, to end and to open it.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os
import socket
import struct

from targets import reached

libc = ctypes.CDLL(None)
end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(3))
for name in (77, 17):  # SO_PEERPIDFD, SO_PEERCRED
    try:
        [handle] = struct.unpack_from("i", end.getsockopt(socket.SOL_SOCKET, name, 12))
    except OSError:
        continue
    for number in (0, 9):
        if libc.syscall(424, handle, number, None, 0) == 0:  # pidfd_send_signal
            reached("the judge")
    if libc.syscall(438, handle, 0, 0) >= 0:  # pidfd_getfd
        reached("the judge's files")
    if libc.syscall(308, handle, 0x10000000) == 0:  # setns
        reached("the judge's namespaces")
for number in (0xFF00, 0xFF01, 0xFF0B):  # what a handle tells of its process
    if libc.ioctl(handle, number, ctypes.create_string_buffer(64)) == 0:
        reached("what the judge is")
