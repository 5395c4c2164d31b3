"""The process that looks after this one is taken over, frozen, outlived, and spoken for.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os
import resource
import signal

from targets import reached

libc = ctypes.CDLL(None)
keeper = os.getppid()
attempts = {
    "ptrace": lambda: libc.ptrace(0x4206, keeper, None, None),  # PTRACE_SEIZE
    "memory": lambda: libc.syscall(311, keeper, None, 0, None, 0, 0),  # process_vm_writev
    "handle": lambda: libc.syscall(434, keeper, 0),  # pidfd_open
    "signal": lambda: libc.syscall(129, keeper, signal.SIGSTOP, None),  # rt_sigqueueinfo
    "thread": lambda: libc.syscall(200, keeper, signal.SIGSTOP),  # tkill
    "group": lambda: libc.setpgid(0, keeper),
    "session": libc.setsid,
    "priority": lambda: libc.setpriority(0, keeper, 19),
    "processors": lambda: libc.sched_setaffinity(keeper, 8, ctypes.byref(ctypes.c_uint64(1))),
    "subreaper": lambda: libc.prctl(36, 1, 0, 0, 0),
    "dumpable": lambda: libc.prctl(4, 1, 0, 0, 0),
    "tracer": lambda: libc.prctl(0x59616D61, -1, 0, 0, 0),
    "limit": lambda: libc.prlimit(
        keeper, resource.RLIMIT_CPU, ctypes.byref((ctypes.c_uint64 * 2)(1, 1)), None
    ),
    "child": lambda: libc.wait4(-1, None, 1, None),
}
for what, attempt in attempts.items():
    if attempt() >= 0:
        reached(what)
