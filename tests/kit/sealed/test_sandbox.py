"""The sandbox holds, is tried before it is believed, and lets Python compute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paperlings.sealed import nursery, sandbox

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
    pid = first.process.pid
    first.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") and not _children_of(pid):
            break
        time.sleep(0.02)
    assert not _children_of(pid)
    for link in links:
        link.close("it has ended")


def _children_of(pid: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(path.parent.name)
    return found
