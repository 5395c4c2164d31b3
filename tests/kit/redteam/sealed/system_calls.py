"""Rare system calls are tried: mounts, namespaces, keys, tracing, rings, another ABI's.

Must: no task passes, and nothing is touched.
"""

import ctypes

from targets import reached

libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "unshare": (272, 0x10000000),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None),
    "chroot": (161, b"/"),
    "pivot_root": (155, b"/", b"/"),
    "setns": (308, 3, 0),
    "bpf": (321, 0, None, 0),
    "perf_event_open": (298, None, 0, 0, -1, 0),
    "io_uring_setup": (425, 1, None),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, -3, 1),
    "add_key": (248, b"user", b"a", b"b", 1, -3),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "pidfd_open": (434, 1, 0),
    "open_by_handle_at": (304, -100, None, 0),
    "setuid": (105, 0),
    "personality": (135, 0x40000),
    "seccomp": (317, 0, 0, None),
    "prctl": (157, 4, 1, 0, 0),
    "ioctl TIOCSTI": (16, 0, 0x5412, b"x"),
    "mknod": (133, b"/tmp/paperlings-node", 0o10666, 0),
    "timer_create": (222, 0, None, None),
    "shmget": (29, 0, 4096, 0o1666),
    "msgget": (68, 0, 0o1666),
    "semget": (64, 0, 1, 0o1666),
    "mq_open": (240, b"paperlings", 0o102, 0o666, None),
}
for name, call in calls.items():
    if libc.syscall(*call) >= 0:
        reached(name)
