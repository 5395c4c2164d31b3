"""The sandbox holds, is tried before it is believed, and lets Python compute."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paperlings.outcomes import KitFault
from paperlings.sealed import nursery, proxy, sandbox

needs = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


def locked(code: str) -> str:
    """What a process says that has locked itself and then runs `code`."""
    program = f"from paperlings.sealed import sandbox\nsandbox.lock()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
    return (done.stdout + done.stderr).strip()


@needs
def test_nothing_that_is_tried_gets_out() -> None:
    """No process, program, socket, signal, file outside the libraries, nor a limit raised."""
    assert locked("print(sandbox.escapes())") == "[]"


def test_without_it_everything_gets_out() -> None:
    """The attempts are real: an open process can do them all, so that to fail them says something.

    What root or a missing program decides is left out.
    """
    assert {"make a process", "list the house", "write a file"} <= set(sandbox.escapes())
    Path("/tmp/.paperlings-escape").unlink(missing_ok=True)
    Path("/dev/shm/.paperlings-escape").unlink(missing_ok=True)


@needs
def test_libraries_can_still_be_read() -> None:
    """A submission may import what Python has."""
    assert locked("import wave, colorsys; print('fine')") == "fine"


@needs
def test_threads_can_still_be_made() -> None:
    """torch wants them; processes are another thing."""
    code = (
        "import threading\nt = threading.Thread(target=print, args=('fine',))\nt.start()\nt.join()"
    )
    assert locked(code) == "fine"


@needs
def test_memory_is_bounded() -> None:
    """Who takes more than the limit is refused."""
    code = f"try:\n    bytearray({sandbox.MEMORY})\nexcept MemoryError:\n    print('refused')"
    assert locked(code) == "refused"


@needs
def test_no_privilege_is_left() -> None:
    """Root or not: no capability, and no way to gain one."""
    code = (
        "import ctypes\n"
        "data = ctypes.create_string_buffer(24)\n"
        "head = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "print(sandbox._libc.prctl(39, 0, 0, 0, 0))"
    )
    assert locked(code) == "-1"  # even to ask is refused


@needs
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has something to give up")
def test_root_becomes_a_stranger() -> None:
    """Also where only root can read the libraries, and with nothing of root's left but that; each
    candidate another one, for the kernel counts threads by user.
    """
    who = "import os\nprint(*os.getresuid(), *os.getresgid())\n"
    places = ("/etc/shadow", str(Path.home()))
    tried = f"for path in {places}:\n    print(os.access(path, os.W_OK))"
    found = [locked(who + tried).split() for _ in range(2)]
    for one in found:
        assert len(set(one[:3])) == 1
        assert int(one[0]) >= sandbox.STRANGERS
        assert one[3:] == [str(sandbox.NOBODY)] * 3 + ["False", "False"]
    assert found[0][0] != found[1][0]


@needs
def test_tasks_are_bounded() -> None:
    """So many threads, and the machine has room for those of others."""
    code = "import resource\nprint(resource.getrlimit(resource.RLIMIT_NPROC))"
    most = min(sandbox.TASKS, *resource.getrlimit(resource.RLIMIT_NPROC)) % (1 << 64)
    assert locked(code) in [f"({n}, {n})" for n in (most, sandbox.TASKS, sandbox.THREADS)]


@needs
@pytest.mark.skipif(os.geteuid() != 0, reason="nobody else can look into a candidate")
def test_a_candidate_has_inherited_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """No open file but its connection, no memory that others write, and no word of the judge's."""
    secret = os.urandom(16).hex()
    monkeypatch.setenv("GRADER_TOKEN", secret)
    first = nursery.Nursery()
    link = first.link(tmp_path / "x.py")
    with contextlib.suppress(proxy.Gone):
        proxy.load(link, tmp_path / "x.py", "x", "y = 1", False)
    candidate = _innermost(first.process.pid)
    place = Path(f"/proc/{candidate}")
    assert {path.name for path in (place / "fd").iterdir()} == {"0", "1", "2", "3"}
    words = (place / "environ").read_bytes()
    with open(place / "mem", "rb", 0) as memory:
        for line in (place / "maps").read_text().splitlines():
            bounds, rights, *_, path = [*line.split(), ""]
            assert rights[3] == "p" or "w" not in rights, line
            if rights[:2] != "rw" or path.startswith("[v"):
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(start)
            words += memory.read(end - start)
    assert len(words) > 1 << 20
    assert secret.encode() not in words
    assert b"no word of the judge" not in words
    link.close("it has been looked at")
    first.close()


def _innermost(pid: int) -> int:
    """The last of its line."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _innermost(int(children[0])) if children else pid


def test_a_filter_is_made_for_this_process() -> None:
    """Eight bytes an instruction, and fewer than the kernel takes."""
    code = sandbox.program()
    assert len(code) % 8 == 0
    assert len(code) // 8 < 4096


def test_what_is_readable_holds_neither_tests_nor_answers() -> None:
    """Only Python, its packages, the system's libraries and the tools themselves."""
    house = Path(__file__).resolve().parents[3]
    for folder in sandbox.readable():
        for name in ("tests", "reference", "solutions", ".git", "exercises", "kernels"):
            assert not (house / name).is_relative_to(folder), folder


def test_a_level_has_a_name_and_words() -> None:
    """The word stands in every result."""
    assert set(sandbox.WORDS) == set(sandbox.LEVELS)
    assert sandbox.probe() in sandbox.LEVELS


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_is_taken_where_it_works() -> None:
    """It is the strongest, and the same things hold in it."""
    assert sandbox.container()
    first = nursery.Nursery()
    assert first.level == sandbox.BUBBLEWRAP
    first.close()


def test_a_nursery_ends_with_all_its_candidates(tmp_path: Path) -> None:
    """Nothing is left of it."""
    first = nursery.Nursery()
    links = [first.link(tmp_path / "x.py") for _ in range(3)]
    found: set[int] = set()
    while len(found) < 7:  # itself, and for each a keeper and a candidate
        found = {first.process.pid, *_below(first.process.pid)}
    first.close()
    for _ in range(200):
        if not any(map(_lives, found)):
            break
        time.sleep(0.02)
    assert not any(map(_lives, found))
    for link in links:
        with pytest.raises(KitFault):  # it did not end by itself
            link.request({"do": "nothing"})


def test_a_nursery_that_has_ended_is_replaced(monkeypatch: Any, tmp_path: Path) -> None:
    """By its owner; who was forked from that can only say so."""
    monkeypatch.setattr(nursery, "_nursery", None)
    first = nursery.shared()
    assert nursery.shared() is first
    os.killpg(first.process.pid, signal.SIGKILL)
    while first.is_alive():
        time.sleep(0.01)
    monkeypatch.setattr(first, "owner", os.getppid())  # as it is in a process that is forked
    with pytest.raises(KitFault, match="has ended"):
        nursery.shared().link(tmp_path / "x.py")
    monkeypatch.setattr(first, "owner", os.getpid())
    second = nursery.shared()
    assert second is not first
    assert second.level == first.level
    second.close()


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, children) for pid in (child, *_below(child))]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
