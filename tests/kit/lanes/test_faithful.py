"""Entering and leaving `faithful()`: what it needs, what it changes, that it changes it back."""

from __future__ import annotations

import importlib.metadata
import linecache
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
import triton
from triton.runtime import interpreter as of_triton

from paperlings import lanes
from paperlings.lanes import interpreter, patches
from paperlings.loading import load
from paperlings.outcomes import Unverified

PLANTED = Path(__file__).with_name("planted.py")


def launch(module) -> None:
    x = torch.linspace(0, 1, 1000, dtype=torch.bfloat16)
    out = torch.empty_like(x)
    module.add[(4,)](x, x, out, 1000, 256)
    assert torch.equal(out, x + x)


def everything_of_triton() -> dict[str, dict[str, object]]:
    """Every name in every module and class of triton, and in the builder."""
    found: dict[str, dict[str, object]] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "triton" and isinstance(module, types.ModuleType):
            found[name] = dict(vars(module))
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__.startswith("triton"):
                    found[f"{value.__module__}.{value.__qualname__}"] = dict(vars(value))
    builder = of_triton.interpreter_builder
    return found | {"builder": vars(builder) | {"class": type(builder)}}


PRISTINE = everything_of_triton()


def test_everything_is_put_back():
    """Each name of triton is bound to what it was bound to, though kernels ran, and raised."""
    module = load(PLANTED, "planted")
    names = dict(vars(module))
    with interpreter.faithful():
        launch(module)
        module.external[(1,)](torch.ones(16), torch.empty(16), "tanh imported", 16)
    with pytest.raises(NotImplementedError), interpreter.faithful():
        module.todo[(1,)](torch.zeros(1))
    after = everything_of_triton()
    for place, before in PRISTINE.items():
        lost = {name for name in before if after[place].get(name, PRISTINE) is not before[name]}
        # a module that is imported becomes a name of its package, and that is all that may be new
        new = {
            name
            for name, value in after[place].items()
            if name not in before and not isinstance(value, types.ModuleType)
        }
        assert not lost | new, f"{place}: {lost | new}"
    assert vars(module) == names, "and so are those of the kernel's own file"


def test_one_block_inside_another_changes_nothing():
    """The outer one decides when it ends."""
    module = load(PLANTED, "planted")
    with interpreter.faithful():
        state = everything_of_triton()
        with interpreter.faithful():
            assert everything_of_triton() == state
        launch(module)


def test_kernels_may_be_made_before_the_block_or_in_it():
    """And run in more than one."""
    before = load(PLANTED, "planted")
    with interpreter.faithful():
        inside = load(PLANTED, "planted")
        launch(before)
        launch(inside)
    with interpreter.faithful():
        launch(before)
        launch(inside)


def test_kernels_may_come_from_a_text_that_linecache_has():
    """A variant of a file that is not saved is interpreted as itself, under a name of its own."""
    source = PLANTED.read_text(encoding="utf-8").replace("tl.load(X + i, mask=i < n) * 2", "7")
    assert "tl.store(OUT + i, 7" not in source
    source = source.replace("tl.load(X + i, mask=inside) * 2", "7")
    name = f"{PLANTED} (a variant)"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module = types.ModuleType("variant")
    exec(compile(source, name, "exec"), module.__dict__)
    out = torch.empty(10)
    with interpreter.faithful():
        module.double_in_place[(1,)](torch.ones(10), out, 10, 16)
    assert (out == 7).all()


@pytest.mark.parametrize("mode", ["default", "warn", "error"])
@pytest.mark.parametrize("fill", [True, False])
def test_the_settings_of_torch_come_back(mode, fill):
    """Whatever they were."""
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    before = torch.get_deterministic_debug_mode()
    try:
        with interpreter.faithful():
            assert torch.empty(5).isnan().all()
        assert torch.get_deterministic_debug_mode() == before
        assert torch.utils.deterministic.fill_uninitialized_memory == fill
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_an_unknown_version_is_unverified_and_nothing_is_changed(monkeypatch):
    """Its interpreter may be another one."""
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.0.0" if name == "triton" else known(name)
    )
    lanes._why_no_triton.cache_clear()
    monkeypatch.setattr(patches, "applied", None)
    before = everything_of_triton()
    try:
        with pytest.raises(Unverified, match=r"4\.0\.0"), interpreter.faithful():
            raise AssertionError
    finally:
        lanes._why_no_triton.cache_clear()
    assert everything_of_triton() == before


def test_a_process_that_compiles_kernels_is_unverified():
    """What is interpreted is decided when triton is imported."""
    program = (
        "import triton\n"
        "from paperlings.lanes import interpreter\n"
        "from paperlings.outcomes import Unverified\n"
        "try:\n"
        "    with interpreter.faithful(): print('entered')\n"
        "except Unverified as reason:\n"
        "    print(reason)\n"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "before the interpreter was switched on" in done.stdout, done.stderr


def test_known_versions_are_the_ones_tried():
    """This run tried one of them."""
    assert ".".join(triton.__version__.split(".")[:2]) in lanes.KNOWN
