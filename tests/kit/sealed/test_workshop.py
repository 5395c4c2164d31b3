"""A workshop has room for tools, and walls that hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paperlings.sealed import sandbox, workshop

needs = pytest.mark.skipif(not workshop._prefix(False), reason="no workshop holds here")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rooms that are soon full, in workshops that are tried anew."""
    monkeypatch.setattr(workshop, "ROOM", 1 << 24)
    workshop._prefix.cache_clear()
    yield
    workshop._prefix.cache_clear()


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    """A submission's file."""
    path = tmp_path / "x.py"
    path.write_text("y = 1\n")
    path.chmod(0o444)
    return path


def inside(file: Path, code: str, gpu: bool = False) -> str:
    """What a process says that has entered a workshop, where `file` lies on a desk, and then runs
    `code`.
    """
    program = f"import os\nfrom paperlings.sealed import workshop\nworkshop.enter()\n{code}"
    done = subprocess.run(
        [*workshop.command(gpu, file, Path("/desk/x.py")), sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=workshop.HOUSE,
        env={},
    )
    return (done.stdout + done.stderr).strip()


@needs
@pytest.mark.parametrize("gpu", [False, True])
def test_nothing_that_is_tried_gets_out(handed_in: Path, gpu: bool) -> None:
    """No file, no network, no namespace; also with whatever of a GPU this machine has."""
    assert inside(handed_in, "print(workshop.escapes())", gpu) == "[]"


def test_without_it_everything_gets_out() -> None:
    """The attempts are real, but for what root, a network or the kernel decides."""
    program = "from paperlings.sealed import workshop\nprint(*workshop.escapes(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workshop.HOUSE, capture_output=True, check=True
    )
    found = set(done.stdout.decode().splitlines())
    (workshop.HOUSE / "paperlings/.escape").unlink(missing_ok=True)
    Path("/.paperlings-escape").unlink(missing_ok=True)
    assert {"read /etc/passwd", "read the tests", "write into the house"} <= found


@needs
def test_tools_can_be_started(handed_in: Path) -> None:
    """A compiler writes a program, and that runs; the assembler of triton is there, too."""
    pytest.importorskip("triton")
    code = """
import pathlib, subprocess, sysconfig
pathlib.Path("/tmp/x.c").write_text('#include <stdio.h>\\nint main() { puts("made"); }')
subprocess.run(["gcc", "/tmp/x.c", "-o", "/tmp/x"], check=True)
subprocess.run(["/tmp/x"], check=True)
ptxas = sysconfig.get_path("platlib") + "/triton/backends/nvidia/bin/ptxas"
subprocess.run([ptxas, "--version"], check=True, stdout=subprocess.DEVNULL)
print("used", flush=True)
"""
    assert inside(handed_in, code) == "made\nused"


@needs
def test_the_submission_lies_at_its_place_alone(handed_in: Path) -> None:
    """It can be read there, and not be changed."""
    code = """
print(open("/desk/x.py").read().strip(), os.listdir("/desk"))
for attempt in (lambda: open("/desk/x.py", "w"), lambda: os.replace("/desk/x.py", "/desk/y.py")):
    try:
        attempt()
    except OSError:
        print("refused")
"""
    assert inside(handed_in, code).splitlines() == ["y = 1 ['x.py']", "refused", "refused"]


@needs
def test_tmp_is_its_own_and_bounded(handed_in: Path) -> None:
    """Nobody else's files are in it, and nobody else's disk is filled from it."""
    other = handed_in.with_name("other")
    other.write_text("of somebody else")
    code = f"""
print(os.path.exists({str(other)!r}))
try:
    open("/tmp/full", "wb").write(bytes(1 << 25))
except OSError as error:
    print(error.strerror)
"""
    assert inside(handed_in, code) == "False\nNo space left on device"


@needs
def test_nobody_works_in_it_and_nobody_else_is_seen(handed_in: Path) -> None:
    """No privilege is left, and no process but those of the workshop."""
    code = """
fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
print(*(int(fields[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")))
print(fields["NoNewPrivs"].strip(), os.getuid() != 0)
print(len([name for name in os.listdir("/proc") if name.isdigit()]) < 4)
"""
    assert inside(handed_in, code) == "0 0 0 0\n1 True\nTrue"


@needs
def test_what_the_judge_knows_is_not_told(handed_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its environment, what says where programs find things, and nothing else."""
    monkeypatch.setenv("GRADER_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    known = {*workshop.OWN, *workshop.KEPT, sandbox.MARK, "PWD", "LC_CTYPE"}
    told = set(inside(handed_in, "print(*os.environ)").split())
    assert "CUDA_VISIBLE_DEVICES" in told
    assert told <= known


@needs
def test_what_is_left_behind_ends_with_it(handed_in: Path) -> None:
    """Also what has left its session and its parent."""
    marker = f"{int.from_bytes(os.urandom(4), 'big')}.25"
    code = f"""
import subprocess
if not os.fork():
    os.setsid()
    subprocess.Popen(["sleep", "{marker}"])
    os._exit(0)
os.wait()
print("left", flush=True)
os._exit(0)
"""
    assert inside(handed_in, code) == "left"
    for _ in range(100):
        if not any(marker in _words(path) for path in Path("/proc").glob("[0-9]*")):
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def _words(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_where_none_holds_there_is_none(handed_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever run outside in its place; and one out of which there is a way is none."""
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(sandbox.Unlockable, match="does not work here"):
        workshop.command(False, handed_in, handed_in)


@needs
def test_one_with_a_hole_is_none(handed_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something gets out, nobody is let in."""
    hole = ["--bind", "/etc", "/etc"]
    monkeypatch.setattr(workshop, "_shown", lambda gpu: hole)
    with pytest.raises(sandbox.Unlockable):
        workshop.command(False, handed_in, handed_in)


def test_a_filter_is_made_for_those_who_start_others() -> None:
    """Eight bytes an instruction, and the calls of the lock are not among the refused."""
    assert len(sandbox.lenient()) % 8 == 0
    assert not sandbox._CALLS.keys() & sandbox._REFUSED.keys()
