"""What a sealed kernel compiles to is what it compiles to anywhere, though it starts nothing."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paperlings import files, lanes, layout
from paperlings.lanes import compiled, cubin
from paperlings.lanes.compiled import launches, tensor
from paperlings.outcomes import KitFault
from paperlings.sealed import nursery, sandbox
from paperlings.testing.close import Mismatch

pytestmark = [
    pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here"),
    pytest.mark.skipif(bool(lanes.why_not_compiled()), reason=lanes.why_not_compiled()),
]

SAMPLES = Path(__file__).parents[1] / "lanes" / "samples"
PRODUCTS, FAULTS = "kernels/products", "kernels/faults"
MATRIX, TILE = tensor("bfloat16", 4096, 4096), tensor("bfloat16", 16, 16)
HEADS = tensor("bfloat16", 2, 8, 1024, 64)
FORGED = """
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction


@triton.jit
def _one(X):
    tl.store(X, 1.0)


def f(x):
    _one[(1,)](x)
    {what}
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing was compiled before."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path / "cache")


def sealed(key: str, function: str, args: Any, root: Path = SAMPLES, **more: Any) -> Any:
    """What is launched by the function of a module in a locked process."""
    module = nursery.load(root, key)
    try:
        return launches(layout.source(root, key), function, args, sealed=module, **more)
    finally:
        module.close()


def fault(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises((Mismatch, NotImplementedError)) as error:
        call()
    kind = type(error.value).__name__
    return kind, getattr(error.value, "difference", "") or str(error.value)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        ("product", (MATRIX, MATRIX), {"m": 64, "n": 64, "warps": 4}),
        ("tuned", (MATRIX, MATRIX), {}),
        ("attention", (HEADS, HEADS, HEADS), {}),
        ("crowded", (tensor("float32", 8, 16384),), {}),
    ],
)
@pytest.mark.usefixtures("alone")
def test_what_a_kernel_compiles_to_does_not_depend_on_the_lock(function, args, kwargs) -> None:
    """Every count is the same, on every chip, of configurations that are tried too."""
    there = sealed(PRODUCTS, function, args, kwargs=kwargs)
    here = launches(SAMPLES / f"{PRODUCTS}.py", function, args, kwargs)
    timeless = [
        [dataclasses.replace(kernel, seconds=0.0) for kernel in mine] for mine in (here, there)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    "function",
    ["narrow", "short", "peeks", "elsewhere", "raises", "hides", "silent", "stub", "stub_below"],
)
@pytest.mark.usefixtures("alone")
def test_what_goes_wrong_is_said_in_the_same_words(function) -> None:
    """A kernel that does not compile, a host function that fails, and a stub."""
    path = SAMPLES / f"{FAULTS}.py"
    assert fault(lambda: sealed(FAULTS, function, (TILE,), targets=(90,))) == fault(
        lambda: launches(path, function, (TILE,), targets=(90,))
    )


@pytest.mark.usefixtures("alone")
def test_what_ends_its_process_or_does_not_end_is_a_finding(monkeypatch) -> None:
    """And another process is there for the next question."""
    from paperlings.sealed import compiling

    assert "exit status 3" in fault(lambda: sealed(FAULTS, "dies", (TILE,), targets=(90,)))[1]
    monkeypatch.setattr(compiling, "SECONDS", 3.0)
    kind, said = fault(lambda: sealed(FAULTS, "hangs", (TILE,), targets=(90,)))
    assert (kind, "does not end within 3 s" in said) == ("TimedOut", True)
    assert sealed(FAULTS, "chatty", (TILE,), targets=(90,))[0].kernel == "_square"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("from paperlings.lanes import toolless; toolless._written.clear()", ""),
        ("import os; os.write(3, b'x' * 100)", "the process that runs it has ended"),
        (
            "import paperlings.lanes.cubin as c; c.Launched.__init__ = lambda s, *a: s.__dict__"
            ".update(kernel='_one', warps=0, shared=0, columns=0, dots=0, seconds=0)",
            "it says what is no kernel",
        ),
        (
            "import paperlings.lanes.cubin as c; c.Launched.__init__ = lambda s, *a: s.__dict__"
            ".update(kernel='_one', warps=4, shared=-1, columns=0, dots=0, seconds=0)",
            "it says what is no kernel",
        ),
        (
            "import paperlings.lanes.recorder as r; r.Recorder.seen = lambda s: "
            "[(r.Launched('x', 4, 0, 0, False, 0.0), b'7')]",
            "it has not had this kernel assembled",
        ),
        (
            "import paperlings.lanes.recorder as r; r.Recorder.seen = lambda s: []",
            "it says nothing about its kernels",
        ),
    ],
)
@pytest.mark.usefixtures("alone")
def test_forged_answers_are_a_finding_or_make_no_difference(tmp_path, what, said) -> None:
    """What the process says of its kernels has the form it must have, or is its end."""
    files.write(tmp_path / "kernels" / "forged.py", FORGED.format(what=what))
    module = nursery.load(tmp_path, "kernels/forged")
    ask = lambda: launches(  # noqa: E731
        tmp_path / "kernels" / "forged.py",
        "f",
        (tensor("float32", 4),),
        targets=(90,),
        sealed=module,
    )
    if said:
        assert said in fault(ask)[1]
    else:
        assert [kernel.kernel for kernel in ask()] == ["_one"]
    module.close()


# ---- the process in which programs are started


def escapes(folder: str) -> dict[str, list[str]]:
    """What a program that reads machine code can do beside that."""
    own = Path(folder) / "own"
    own.write_text("mine")
    attempts: dict[str, Callable[[], object]] = {
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "list the house": lambda: os.listdir(layout.HOME),
        "write beside its folder": lambda: Path("/tmp/paperlings-escape").write_text("x"),
        "write into the kit": lambda: (layout.HOME / "paperlings" / "x.py").write_text("x"),
        "start the shell with a file": lambda: subprocess.run(
            ["/bin/sh", "-c", "cat /etc/passwd"], check=True, stderr=subprocess.DEVNULL
        ),
        "write a large file": lambda: os.truncate(own, sandbox.TOOL_BYTES + 1),
        "regain its user": lambda: os.setuid(0) if os.getuid() else os.setuid("none"),
    }
    found = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, TypeError, subprocess.CalledProcessError):
            continue
        found.append(name)
    return {"found": found}


def test_whoever_reads_machine_code_can_do_nothing_else() -> None:
    """It was made by a stranger's compiler, and a program that reads it may have faults."""
    from paperlings.sealed import compiling

    if not sandbox.landlock_version():
        pytest.skip("this kernel has no Landlock")
    assert compiling._apart(lambda: escapes(tempfile.gettempdir())) == {"found": []}


@pytest.mark.usefixtures("alone")
def test_where_temporary_files_are_private_it_finds_another_place(monkeypatch, tmp_path) -> None:
    """Its user is another one, who may not enter everywhere."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    assert sealed(FAULTS, "chatty", (TILE,), targets=(90,))[0].kernel == "_square"
    assert not list(private.iterdir())


@pytest.mark.usefixtures("alone")
def test_an_assembler_that_assembles_nothing_is_the_kits_fault(monkeypatch) -> None:
    """A submission is not told that its code does not compile where no code would."""
    from paperlings.lanes import recorder
    from paperlings.sealed import compiling

    monkeypatch.setattr(compiling, "NOTHING", "what it cannot assemble either")
    assembler = compiling._Assembler(cubin.CHIPS[90], recorder.tools())
    with pytest.raises(KitFault, match="reads machine code"):
        assembler.assemble(torch.tensor(list(b"no PTX"), dtype=torch.uint8), True)
    assert isinstance(assembler.failed, KitFault)


def test_a_reader_that_fails_is_the_kits_fault() -> None:
    """Never the submission's."""
    from paperlings.sealed import compiling

    with pytest.raises(KitFault, match="reads machine code"):
        compiling._apart(lambda: {"": object()})


@pytest.mark.parametrize("text", ["", "no PTX", ".version 8.0\n.target sm_90\n" + "{" * 100_000])
def test_what_is_no_ptx_is_refused_in_words(text) -> None:
    """The assembler's last word comes back."""
    from paperlings.lanes import recorder
    from paperlings.sealed import compiling

    for chip in cubin.CHIPS.values():
        assembler = compiling._Assembler(chip, recorder.tools())
        found = assembler.assemble(torch.tensor(list(text.encode()), dtype=torch.uint8), True)
        assert "ptxas" in found
        assert not assembler.counts
