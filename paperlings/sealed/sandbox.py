"""What a candidate's process may do: compute, and read Python's libraries. Nothing else.

The layers, each put on by the process itself before it loads the submission, and never taken off:
limits on memory, time and files; no privileges, nor root's name; Landlock, which hides all files
but the libraries; a filter of system calls, which leaves no way to make processes, sockets or
files, nor to signal others. None of it needs to be installed, nor root.
Where bubblewrap is installed, all of that happens inside one of its containers, from which not
even the names and sizes of other files can be asked for.

Whether they hold is tried, never guessed: `probe` puts them on in a process of its own,
and tries to get out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

BUBBLEWRAP, LANDLOCK, NONE = "bubblewrap", "landlock", "none"
LEVELS = (BUBBLEWRAP, LANDLOCK, NONE)
WORDS = {
    BUBBLEWRAP: "a bubblewrap container, filtered system calls, limits",
    LANDLOCK: "Landlock, filtered system calls, limits",
    NONE: "no sandbox: a submission can read and change what you can",
}

MEMORY = 3 << 30  # bytes of address space, beyond what the libraries take
SECONDS = 900  # of CPU time
TOOL_BYTES = 64 << 20  # of a file that a tool writes
FILES = 128  # open at once
TASKS = 4096  # processes and threads of its user, which the kernel counts together
THREADS = 64  # where its user has no others; each competes with whatever else is graded
NOBODY = 65534
STRANGERS = 1 << 30  # candidates of root are users from here on, each of its own number

_READ = 1 << 2  # CAP_DAC_READ_SEARCH
_libc = ctypes.CDLL(None, use_errno=True)


class Unlockable(Exception):
    """A layer could not be put on."""


def readable() -> list[str]:
    """What a candidate may read: Python, its packages, system libraries, and this package."""
    python = Path(sys.executable)
    folders = [
        *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", "/dev/null"),
        *(sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()),
        *(str(python.parent), str(python.resolve().parent)),
        str(Path(__file__).resolve().parents[1]),
    ]
    found = sorted({folder for folder in folders if os.path.exists(folder)})
    # a folder inside another is open already
    return [f for f in found if not any(f.startswith(other + "/") for other in found)]


def lock(strict: bool = True) -> None:
    """Put on every layer. strict: raise Unlockable where one does not hold."""
    for layer in (_limits, _privileges, _landlock, _filter):
        try:
            layer()
        except (OSError, ValueError, Unlockable) as error:
            if strict and not (layer is _landlock and is_contained()):
                raise Unlockable(f"{layer.__name__.strip('_')}: {error}") from None


def lock_tools(folder: str, seconds: int) -> None:
    """Lock a process that starts the kit's own tools on what a candidate has made: they may read
    what a candidate may, and write into `folder`. Raises OSError, Unlockable.
    """
    bound_memory(MEMORY)
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, TOOL_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _bound(what, most)
    _privileges()
    if landlock_version():
        _landlock(folder)


# ---- limits and privileges


def bound_memory(beyond: int) -> None:
    """Let this process take so many bytes of address space more than it has now, and never more."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _bound(resource.RLIMIT_AS, mapped + beyond)


def _bound(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _limits() -> None:
    bound_memory(MEMORY)
    _bound(resource.RLIMIT_NOFILE, FILES)
    bound(0)


def bound(size: int) -> None:
    """Let this process write files of such a size, and take its share of time, never more."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_NPROC, TASKS),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
    ):
        _bound(what, most)
    # where memory runs out after all, this process goes first
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _privileges() -> None:
    """A user of its own in place of root, and no capability but, where only root can read the
    libraries, to read what Landlock leaves.
    """
    give_up(_READ if _is_root() and not _nobody_can_read() else 0)
    _libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: its /proc belongs to root
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with its keeper


def give_up(kept: int = 0) -> None:
    """Root's name for that of a stranger, and every capability but `kept`, for good."""
    if _is_root():
        _libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS, across the change of user
        # the kernel counts threads by user: who shared one could leave the others none
        user = STRANGERS + int.from_bytes(os.urandom(3), "big")
        user = user if _has_user(user) else NOBODY
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(user, user, user)
    header = struct.pack("<Ii", 0x20080522, 0)
    sets = struct.pack("<6I", kept, kept, 0, 0, 0, 0)
    if _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(sets)):
        raise OSError(ctypes.get_errno(), "capset")
    if _libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")


def _is_root() -> bool:
    """Whether this is root where there is a nobody; in a namespace of one user it is that user."""
    return os.geteuid() == 0 and _has_user(NOBODY)


def _has_user(number: int) -> bool:
    """Whether there is a user of that number in this namespace."""
    with open("/proc/self/uid_map") as file:
        ranges = [[int(word) for word in line.split()] for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def _nobody_can_read() -> bool:
    for folder in readable():
        for part in (Path(folder), *Path(folder).parents):
            with contextlib.suppress(OSError):
                if not part.stat().st_mode & (0o001 if part.is_dir() else 0o004):
                    return False
    return True


# ---- Landlock: which files there are (linux/landlock.h)

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_RIGHTS = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}  # rights on files that a version knows; 16 later ones


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 without it."""
    version = _libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(int(version), 0)


def _landlock(writable: str = "") -> None:
    version = landlock_version()
    if not version:
        raise Unlockable("this kernel has no Landlock")
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    network = 3 if version >= 4 else 0  # no TCP
    scope = 3 if version >= 6 else 0  # no abstract sockets and no signals to others
    rules = struct.pack("<QQQ", rights, network, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(
        _CREATE, ctypes.c_char_p(rules), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for path in [*readable(), *([writable] if writable else [])]:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ_FILE | (_EXECUTE | _READ_DIR if os.path.isdir(path) else 0)
        allowed = rights if path == writable else allowed
        rule = struct.pack("<Qi", allowed, handle)
        if _libc.syscall(_ADD, ruleset, 1, ctypes.c_char_p(rule), ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), path)
        os.close(handle)
    if _libc.syscall(_RESTRICT, ruleset, ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


# ---- the filter of system calls (linux/seccomp.h, linux/filter.h)

# numbers on x86-64 and on arm64; -1 where a machine has no such call
_CALLS = {
    # memory and threads
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, -1),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "get_mempolicy": (239, 236),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    # signals of its own
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    # what is open already, and reading files
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "close": (3, 57),
    "close_range": (436, 436),
    "lseek": (8, 62),
    "fstat": (5, 80),
    "stat": (4, -1),
    "lstat": (6, -1),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, -1),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, -1),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "dup": (32, 23),
    "dup2": (33, -1),
    "dup3": (292, 24),
    "poll": (7, -1),
    "ppoll": (271, 73),
    "select": (23, -1),
    "pselect6": (270, 72),
    "getsockopt": (55, 209),
    "shutdown": (48, 210),
    # who and when
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgrp": (111, -1),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "times": (100, 153),
    "time": (201, -1),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrandom": (318, 278),
}
_OPEN, _OPENAT, _CLONE, _CLONE3 = (2, -1), (257, 56), (56, 220), (435, 435)
# what neither a compiler nor a driver asks for: more namespaces and mounts, files by their number,
# others' memory, keys that are inherited, and what the kernel has had its holes in
_REFUSED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_KILL_CALL, _FCNTL = (62, 129), (72, 25)
_SENDTO, _RECVFROM = (44, 206), (45, 207)
_TGKILL, _PRLIMIT, _PRCTL, _IOCTL = (234, 131), (302, 261), (157, 167), (16, 29)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _JUMP_EQUAL, _JUMP_ATLEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_THREAD, _USERS = 0x00010000, 0x10000000  # CLONE_THREAD, CLONE_NEWUSER
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Program:
    """A filter in the making: instructions of classic BPF."""

    def __init__(self, machine: int):
        self.machine = machine
        self.code: list[bytes] = []

    def add(self, code: int, k: int, true: int = 0, false: int = 0) -> None:
        self.code.append(struct.pack("<HBBI", code, true, false, k))

    def rule(self, call: tuple[int, int], *tests: tuple[int, int, tuple[int, ...]]) -> None:
        """Let a call through whose arguments pass the tests: (word, mask, allowed values).

        An argument is two words of 32 bits, the lower first; of an int only that counts.
        """
        number = call[self.machine]
        if number < 0:
            return
        body = _Program(self.machine)
        for word, mask, values in tests:
            body.add(_LOAD, 16 + 4 * word)
            body.add(_AND, mask & 0xFFFFFFFF)
            for left, value in zip(range(len(values), 0, -1), values, strict=True):
                body.add(_JUMP_EQUAL, value, left, 0)
            body.add(_RETURN, _REFUSE | _EPERM)
        body.add(_RETURN, _ALLOW)
        self.add(_JUMP_EQUAL, number, 0, len(body.code))
        self.code += body.code

    def refuse(self, call: tuple[int, int], how: int) -> None:
        self.add(_JUMP_EQUAL, call[self.machine], 0, 1)
        self.add(_RETURN, _REFUSE | how)


def _begun() -> _Program:
    """A filter for this machine, which has no rules yet. Raises Unlockable on one it does not
    know.
    """
    if platform.machine() not in _MACHINES or sys.byteorder != "little":
        raise Unlockable(f"no filter for {platform.machine()}")
    machine, architecture = _MACHINES[platform.machine()]
    p = _Program(machine)
    p.add(_LOAD, 4)
    p.add(_JUMP_EQUAL, architecture, 1, 0)
    p.add(_RETURN, _KILL)
    p.add(_LOAD, 0)
    p.add(_JUMP_ATLEAST, 0x40000000, 0, 1)  # the calls of another ABI
    p.add(_RETURN, _KILL)
    return p


def program() -> bytes:
    """The filter for this process."""
    p = _begun()
    for call in _CALLS.values():
        p.rule(call)
    p.rule(_OPEN, (2, _WRITES, (0,)))
    p.rule(_OPENAT, (4, _WRITES, (0,)))
    p.rule(_CLONE, (0, _THREAD, (_THREAD,)))
    p.refuse(_CLONE3, _ENOSYS)  # its flags are out of sight; the C library then takes clone
    for call in (_SENDTO, _RECVFROM):  # no bytes out of band; with messages, no handles
        p.rule(call, (6, socket.MSG_OOB, (0,)))
    for call in (_KILL_CALL, _TGKILL):
        p.rule(call, (0, -1, (os.getpid(),)))
    p.rule(_PRLIMIT, (4, -1, (0,)), (5, -1, (0,)))  # to read, not to set
    p.rule(_PRCTL, (0, -1, (15, 16)))  # a thread's name
    p.rule(_IOCTL, (2, -1, (0x5401, 0x5421, 0x541B, 0x5450, 0x5451)))
    p.rule(_FCNTL, (2, -1, (0, 1, 2, 3, 4, 1030)))  # none that makes signals
    p.add(_RETURN, _REFUSE | _EPERM)
    return b"".join(p.code)


def lenient() -> bytes:
    """The filter for a process that starts others, in a container."""
    p = _begun()
    for call in _REFUSED.values():
        p.refuse(call, _EPERM)
    p.rule(_CLONE, (0, _USERS, (0,)))
    p.refuse(_CLONE3, _ENOSYS)
    p.add(_RETURN, _ALLOW)
    return b"".join(p.code)


def _filter() -> None:
    put_on(program())


def put_on(code: bytes) -> None:
    """Filter the system calls of this process, and of those it starts, for good."""
    memory = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(memory))
    if _libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


# ---- bubblewrap

PROCESSORS = "/sys/devices/system/cpu"


def container(*also: str) -> list[str]:
    """The command that runs another in a container of bubblewrap, or nothing where none works.

    also: more of bubblewrap's arguments, before the libraries, which may lie on what these mount.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return []
    paths = [path for path in readable() if not path.startswith("/dev/")]  # has its own
    binds = [part for path in paths for part in ("--ro-bind", path, path)]
    links: list[str] = []
    for path in ("/bin", "/sbin"):
        if os.path.islink(path):
            links += ["--symlink", os.readlink(path), path]
    for namespaces in _namespaces():
        command = [
            *(bwrap, *namespaces, "--die-with-parent", "--new-session"),
            *("--clearenv", "--setenv", MARK, "1", "--dev", "/dev"),
            *("--proc", "/proc", *also, "--ro-bind", *2 * [PROCESSORS]),
            *(*binds, *links),
        ]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [*command, sys.executable, "-I", "-S", "-c", ""],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
            if done.returncode == 0:
                return command
    return []


def _namespaces() -> list[list[str]]:
    """Ways to part from the system, best first. In root's own, candidates can become nobody."""
    ways = [["--unshare-all", "--cap-drop", "ALL"]]
    if _is_root():
        apart = [f"--unshare-{what}" for what in ("ipc", "pid", "net", "uts", "cgroup-try")]
        needed = ("SETUID", "SETGID", "KILL", "DAC_READ_SEARCH")
        kept = [part for name in needed for part in ("--cap-add", f"CAP_{name}")]
        ways.insert(0, [*apart, "--cap-drop", "ALL", *kept])
    return ways


MARK = "PAPERLINGS_CONTAINED"


def is_contained() -> bool:
    return os.environ.get(MARK) == "1"


# ---- trying it


def probe() -> str:
    """The level that holds in this process and those it forks: the layers are put on in one of
    them, which then tries to get out.
    """
    if sys.platform != "linux":
        return NONE
    child = os.fork()
    if not child:
        try:
            lock()
            os._exit(0 if not escapes() else 1)
        except BaseException:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        return NONE
    return BUBBLEWRAP if is_contained() else LANDLOCK


def escapes() -> list[str]:
    """What this process still can do that a candidate must not, in words."""
    house = Path(__file__).resolve().parents[2]
    attempts: dict[str, Callable[[], object]] = {
        "make a process": _fork,
        "run a program": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "make a pair of sockets": _pair,
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "read /etc/passwd": lambda: open("/etc/passwd").close(),
        "list the house": lambda: os.listdir(house),
        "read its parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb").close(),
        "write a file": lambda: open("/tmp/.paperlings-escape", "w").close(),
        "write to /dev/shm": lambda: open("/dev/shm/.paperlings-escape", "w").close(),
        "set a limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        "make memory a file": lambda: os.close(os.memfd_create("escape")),
    }
    found = []
    for what, attempt in attempts.items():
        try:
            attempt()
        except (OSError, ValueError):
            continue
        found.append(what)
    return found


def _pair() -> None:
    for end in socket.socketpair():
        end.close()


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
