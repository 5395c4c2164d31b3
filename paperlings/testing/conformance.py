"""What every task must do whatever its paper: driven by the EXAMPLES of a paper's tests,
one test a fact and task.

A test module says `EXAMPLES = {"task": Example(...)}`; the plugin collects the functions below into
it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from paperlings.testing.close import TOLERANCE, Mismatch, assert_close, unchanged
from paperlings.testing.effects import ANSWERS, effects
from paperlings.testing.gradient import gradients

STEP = 1e-5  # of central differences; their error is about STEP^2 and 1e-16 / STEP
DIFFERENCES = 1e-6  # so this is the tolerance they allow, relative to the largest gradient


@dataclass(frozen=True)
class Example:
    """One ordinary call of a task, from which conformance is tested.

    args, kwargs: plain data; floating tensors in float64, generators allowed (every call gets a
    copy).
    call: how to call the task, `call(impl, *args, **kwargs)`; the task itself without it.
    module: `module(impl)` builds an nn.Module (see `fill`) that is then called with args;
        the gradients of its parameters are checked as well.
    gradient: positions of the arguments by which the answer can be differentiated.
    batch: positions of the arguments whose axis 0 is a batch of at least 3,
    as is that of every answer.
    float32: the task also takes float32, and answers in it.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    module: Callable[[Any], nn.Module] | None = None
    gradient: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    float32: bool = True

    def arguments(self, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
        """Fresh copies of the positional arguments, floating tensors in `dtype`."""
        copies: tuple[Any, ...] = tree_map(lambda leaf: copied(leaf, dtype), self.args)
        return copies

    def run(self, impl: Any, task: str, args: tuple[Any, ...]) -> Any:
        """Call the task once."""
        return self.ready(impl, task, args)()

    def ready(self, impl: Any, task: str, args: tuple[Any, ...]) -> Callable[[], Any]:
        """The call, with its module already built: drawing initial weights is no part of it."""
        kwargs = tree_map(lambda leaf: copied(leaf, torch.float64), self.kwargs)
        if self.module is not None:
            return functools.partial(self.build(impl, args), *args, **kwargs)
        if self.call is not None:
            return functools.partial(self.call, impl, *args, **kwargs)
        return functools.partial(getattr(impl, task), *args, **kwargs)

    def build(self, impl: Any, args: tuple[Any, ...]) -> nn.Module:
        """The module under test, in the dtype of the floating arguments."""
        assert self.module is not None, "only an example with a module builds one"
        module = self.module(impl)
        floating = [leaf.dtype for leaf in tree_leaves(args) if is_floating(leaf)]
        return module.to(floating[0]) if floating else module


def test_inputs_are_left_alone(impl: Any, task: str, example: Example) -> None:
    """A function writes to none of its inputs."""
    args, before = example.arguments(), example.arguments()
    call = example.ready(impl, task, args)
    with effects():
        call()
    for i, (after, original) in enumerate(zip(tree_leaves(args), tree_leaves(before), strict=True)):
        if isinstance(after, Tensor) and not unchanged(after, original):
            question = f"Does an in-place operation change input {i}? Work on a new tensor."
            raise Mismatch(
                question, f"input {i} is not what it was before the call", after, original
            )


def test_the_same_call_gives_the_same_answer(impl: Any, task: str, example: Example) -> None:
    """The answer depends on the arguments alone: no state, no hidden chance, and whoever writes
    into an answer spoils no other.
    """
    answer = example.run(impl, task, example.arguments())
    first = [x.clone() if isinstance(x, Tensor) else x for x in leaves(answer)]
    spoil(answer)
    second = leaves(example.run(impl, task, example.arguments()))
    assert_close(
        second, first, "Is something kept between calls, or drawn from the global random state?"
    )


def test_float32_stays_float32_and_agrees(impl: Any, task: str, example: Example) -> None:
    """float32 in gives float32 out, equal to the float64 answer up to rounding."""
    if not example.float32:
        return _runs(impl, task, example)
    double = leaves(example.run(impl, task, example.arguments()))
    single = leaves(example.run(impl, task, example.arguments(torch.float32)))
    wanted = [x.to(torch.float32) if is_floating(x) else x for x in double]
    assert_close(
        single,
        wanted,
        "Which line makes a tensor of a fixed dtype, or rounds early?",
        rtol=TOLERANCE[torch.float32],
        scale=largest(wanted),
    )


def test_views_are_accepted(impl: Any, task: str, example: Example) -> None:
    """A transposed or strided input gives the same answer as a contiguous one."""
    plain = leaves(example.run(impl, task, example.arguments()))
    views = leaves(example.run(impl, task, tree_map(_strided, example.arguments())))
    assert_close(
        views, plain, "Does a line need contiguous memory, such as .view()?", scale=largest(plain)
    )


def test_a_batch_equals_its_members(impl: Any, task: str, example: Example) -> None:
    """Every member of a batch is treated as if it were alone."""
    if not example.batch:
        return _runs(impl, task, example)
    args = example.arguments()
    whole = leaves(example.run(impl, task, args))
    size = next(leaf.shape[0] for i in example.batch for leaf in tree_leaves(args[i]))
    members = []
    for b in range(size):
        alone = list(example.arguments())
        for i in example.batch:
            alone[i] = tree_map(lambda leaf, b=b: leaf[b : b + 1], alone[i])
        members.append(leaves(example.run(impl, task, tuple(alone))))
    joined = [torch.cat(parts) for parts in zip(*members, strict=True)]
    assert_close(whole, joined, "Does one member of the batch see another?", scale=largest(joined))


def test_gradients_are_finite_and_right(impl: Any, task: str, example: Example) -> None:
    """autograd agrees with central differences of the answer, for every input and parameter."""
    if not example.gradient and example.module is None:
        return _runs(impl, task, example)
    args = example.arguments()
    module = example.build(impl, args) if example.module else None

    def value() -> Tensor:
        out = module(*args, **example.kwargs) if module else example.run(impl, task, args)
        return _weighted(out)

    inputs = [leaf for i in example.gradient for leaf in tree_leaves(args[i]) if is_floating(leaf)]
    for x in inputs:
        x.requires_grad_(True)
    parameters = list(module.parameters()) if module else []
    loss = value()
    question = "Is a part of the answer detached, or computed outside autograd?"
    if not loss.requires_grad:
        raise Mismatch(question, "no gradient flows from the answer to its inputs")
    got = gradients(loss, [*inputs, *parameters])
    wanted = [_differences(value, x) for x in inputs]
    assert_close(got[: len(inputs)], wanted, question, rtol=DIFFERENCES, scale=largest(wanted))
    # a parameter has too many entries for one difference each: compare along one direction
    slopes = [
        (_direction(p) * g).sum() for p, g in zip(parameters, got[len(inputs) :], strict=True)
    ]
    wanted = [_slope(value, p, _direction(p)) for p in parameters]
    assert_close(slopes, wanted, question, rtol=DIFFERENCES, scale=largest(wanted))


def test_global_state_is_left_alone(impl: Any, task: str, example: Example) -> None:
    """Random states, the default dtype and the gradient mode are as they were."""
    call = example.ready(impl, task, example.arguments())
    with effects() as found:
        call()
    if found.changed:
        raise Mismatch(
            "Chance enters through an argument; is something drawn, seeded or set globally?",
            f"the call changed {', '.join(found.changed)}",
        )


def test_nothing_is_looked_up(impl: Any, task: str, example: Example) -> None:
    """The answer is computed: no file is opened, and neither the oracle nor the solution is
    imported.
    """
    question = "Everything the task needs comes in through its arguments."
    imported = _forbidden_imports(impl.__file__)
    if imported:
        raise Mismatch(question, f"the file imports {', '.join(imported)}")
    call = example.ready(impl, task, example.arguments())
    with effects() as found:
        call()
    if found.seen:
        raise Mismatch(question, f"the call {found.seen[0]}")


def _runs(impl: Any, task: str, example: Example) -> None:
    """All that a law can ask of a task it does not apply to."""
    example.run(impl, task, example.arguments())


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]


def copied(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().to(dtype) if is_floating(leaf) else leaf.clone()
    if isinstance(leaf, torch.Generator):
        return torch.Generator(leaf.device).set_state(leaf.get_state())
    return leaf


def is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _strided(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.dim() == 0:
        return leaf
    return torch.stack([leaf, leaf], dim=-1)[..., 0]


def leaves(out: Any) -> list[Any]:
    """The leaves of an answer, detached: tensors and numbers."""
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(out)]


@torch.no_grad()
def spoil(out: Any) -> None:
    """Write into every tensor of an answer that can be written to."""
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            with contextlib.suppress(RuntimeError):  # an expanded view holds one place many times
                leaf.fill_(0)


def largest(values: list[Any]) -> float:
    return max([float(v.abs().max()) for v in values if is_floating(v) and v.numel()], default=0.0)


def _direction(x: Tensor) -> Tensor:
    """Fixed weights of magnitude about 1, all different."""
    return (
        torch.cos(torch.arange(1, x.numel() + 1, dtype=torch.float64)).reshape(x.shape).to(x.dtype)
    )


def _weighted(out: Any) -> Tensor:
    leaves = [leaf for leaf in tree_leaves(out) if is_floating(leaf)]
    if not leaves:
        raise Mismatch("What should the task return?", "the answer holds no floating-point tensor")
    return sum(
        ((_direction(leaf) * leaf).sum() for leaf in leaves),
        start=torch.zeros((), dtype=leaves[0].dtype),
    )


def _differences(value: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Central differences of `value` by every entry of x."""
    slopes = []
    for unit in torch.eye(x.numel(), dtype=x.dtype):
        slopes.append(_slope(value, x, unit.reshape(x.shape)))
    return torch.stack(slopes).reshape(x.shape)


def _slope(value: Callable[[], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    start = x.detach().clone()
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            x.copy_(start + sign * STEP * direction)
        sides.append(value().detach())
    with torch.no_grad():
        x.copy_(start)
    return (sides[0] - sides[1]) / (2 * STEP)


@functools.cache
def _forbidden_imports(path: str) -> tuple[str, ...]:
    found = []
    for node in ast.walk(ast.parse(Path(path).read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if name.split(".")[0] in ANSWERS]
    return tuple(found)
