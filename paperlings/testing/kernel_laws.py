"""What every host function of a kernel must do: driven by the EXAMPLES of a kernel's tests,
one test a fact and task.

A test module says `EXAMPLES = {"task": KernelExample(...)}`; the plugin collects the functions
below into it. They judge a kernel by what it does to memory, not by how it is written;
so each runs where the kernel's memory is, which may be another process than the test's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from paperlings.testing import conformance
from paperlings.testing.close import Mismatch, assert_close, unchanged
from paperlings.testing.conformance import Example, copied, is_floating, largest, leaves, spoil
from paperlings.testing.driver import driver

if TYPE_CHECKING:  # importing triton is for those who test kernels
    from paperlings.lanes.traffic import Record

ORDERS = (1, 2, 3)  # seeds of the orders in which programs run
SEED = 20  # of fresh values, and of how many times they are drawn
BUSY = "Does every call launch kernels that do the whole work on the tensors it is given?"


@dataclass(frozen=True)
class KernelExample(Example):
    """One ordinary call of a host function, from which its laws are tested.

    args, kwargs: plain data; every tensor is in args, contiguous, in the dtype the kernel takes,
    and any right call reads all of it.
    Fresh values are made from these: floating ones scaled, integers shuffled, unless they ascend
    along the last axis as offsets and positions do.
    torch_may: aten operators ("zeros", "sum") that may compute beside the kernels;
    allocations without values and views always may.
    """

    torch_may: tuple[str, ...] = ()

    def arguments(self, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """Fresh copies of the positional arguments, each tensor in its own dtype or in `dtype`."""

        def copy(leaf: Any) -> Any:
            return copied(leaf, dtype or leaf.dtype) if isinstance(leaf, Tensor) else leaf

        copies: tuple[Any, ...] = tree_map(copy, self.args)
        return copies


Law = Callable[[Any, str, KernelExample], None]


def _beside_the_kernel(law: Law) -> Law:
    """Have a law run in the process that runs the kernel."""

    @functools.wraps(law)
    def test(impl: Any, task: str, example: KernelExample) -> None:
        _obey(impl, law.__name__, task, example.args, example.kwargs, example.torch_may)

    return test


@driver
def _obey(impl: Any, law: str, task: str, args: Any, kwargs: Any, torch_may: Any) -> None:
    inspect.unwrap(globals()[law])(impl, task, KernelExample(args, kwargs, torch_may=torch_may))


@_beside_the_kernel
def test_inputs_are_left_alone(impl: Any, task: str, example: KernelExample) -> None:
    """A host function writes to none of its inputs."""
    conformance.test_inputs_are_left_alone(impl, task, example)


@_beside_the_kernel
def test_the_same_call_gives_the_same_answer(impl: Any, task: str, example: KernelExample) -> None:
    """The answer depends on the arguments alone: not on the order in which programs run, nor on
    an earlier call, and whoever writes into an answer spoils no other.
    """
    from paperlings.lanes import interpreter

    answer = example.run(impl, task, example.arguments())
    first = [x.clone() if isinstance(x, Tensor) else x for x in leaves(answer)]
    spoil(answer)
    question = "Does a program need what another one writes, or is something kept between calls?"
    for seed in ORDERS:
        with interpreter.order(seed):
            again = leaves(example.run(impl, task, example.arguments()))
        assert_close(again, first, question, scale=largest(first))


@_beside_the_kernel
def test_views_are_accepted(impl: Any, task: str, example: KernelExample) -> None:
    """A strided input that starts at an odd offset gives the same answer as a contiguous one."""
    plain = leaves(example.run(impl, task, example.arguments()))
    views = leaves(example.run(impl, task, tree_map(_spread, example.arguments())))
    question = "Are the strides of every tensor handed to the kernel, and used there?"
    assert_close(views, plain, question, scale=largest(plain))


@_beside_the_kernel
def test_fresh_values_give_a_fresh_answer(impl: Any, task: str, example: KernelExample) -> None:
    """Inputs that are refilled in place give the answer of their new values, call after call."""
    generator = torch.Generator().manual_seed(SEED)
    held = example.arguments()
    first = leaves(example.run(impl, task, held))
    question = "Is an answer kept from an earlier call with tensors at the same address?"
    for _ in range(4 + int(torch.randint(4, (), generator=generator))):
        fresh = tree_map(functools.partial(_fresh, generator=generator), example.arguments())
        for old, new in zip(_tensors(held), _tensors(fresh), strict=True):
            old.data.copy_(new)  # without .data the tensor would tell that it was written to
        refilled = leaves(example.run(impl, task, held))
        wanted = leaves(example.run(impl, task, fresh))
        assert_close(refilled, wanted, question, scale=largest(wanted))
        if all(unchanged(x, y) for x, y in zip(_tensors(wanted), _tensors(first), strict=True)):
            raise Mismatch(question, "other values are given, and the answer is the same")


@_beside_the_kernel
def test_kernels_do_all_the_work(impl: Any, task: str, example: KernelExample) -> None:
    """In every call kernels read every element of every input and write every element of every
    answer; torch computes nothing beside them, and the host sees no value.
    """
    from paperlings.lanes import watch

    args = example.arguments()
    with watch.over(impl) as seen, seen.reading() as shown:
        for arguments in (args, args, example.arguments()):
            answer, record = _recorded(example.ready(impl, task, arguments))
            _check_work(arguments, answer, record, "")
            if shown:
                question = "Who waits here for the GPU? What depends on values is for a kernel."
                raise Mismatch(question, f"the host takes values out of a tensor by {shown[0]}()")
            used = {name.removeprefix("aten.") for name in record.torch_ops}
            computed = sorted(used - {*watch.FREE, *example.torch_may})
            if computed:
                question = "Can a kernel do this on its way?"
                raise Mismatch(question, f"torch computes beside kernels: {', '.join(computed)}")


@_beside_the_kernel
def test_repeated_values_are_worked_on_as_well(
    impl: Any, task: str, example: KernelExample
) -> None:
    """Zeros, a constant and equal rows take the same work as any other values."""
    _, usual = _recorded(example.ready(impl, task, example.arguments()))
    for values, make in REPEATED.items():
        args = tree_map(lambda x, make=make: make(x) if is_floating(x) else x, example.arguments())
        answer, record = _recorded(example.ready(impl, task, args))
        _check_work(args, answer, record, f", given {values}")
        for what in ("loaded", "stored", "flops"):
            got, wanted = getattr(record, what), getattr(usual, what)
            if got != wanted:
                unit = "FLOPs of dots" if what == "flops" else f"bytes {what}"
                raise Mismatch(BUSY, f"{got} {unit} for {values}, {wanted} for other values")


@_beside_the_kernel
def test_answers_are_plain_tensors_of_their_own(
    impl: Any, task: str, example: KernelExample
) -> None:
    """An answer is a plain tensor, which shares its memory with no input and no other answer."""
    question = "Does every call make a new tensor for every answer?"
    generator = torch.Generator().manual_seed(SEED)
    kept: list[tuple[Tensor, Tensor]] = []
    taken: dict[int, str] = {}
    for _ in ORDERS:
        args = tree_map(functools.partial(_fresh, generator=generator), example.arguments())
        inputs, answers = _tensors(args), _tensors(example.run(impl, task, args))
        taken |= {_memory(x): "an input" for x in inputs}
        for x in answers:
            if type(x) is not Tensor or vars(x):
                raise Mismatch(question, f"an answer is {_described(x)}, no plain tensor")
            if _memory(x) in taken:
                raise Mismatch(question, f"an answer lies in the memory of {taken[_memory(x)]}")
        if not all(unchanged(x, copy) for x, copy in kept):
            raise Mismatch(question, "a later call changes an earlier answer")
        kept += [(x, x.clone()) for x in (*inputs, *answers)]
        taken |= {_memory(x): "an earlier answer" for x in answers}


@_beside_the_kernel
def test_global_state_is_left_alone(impl: Any, task: str, example: KernelExample) -> None:
    """Random states, the default dtype and the gradient mode are as they were, and no thread is
    started.
    """
    from paperlings.lanes import watch

    with watch.over(impl) as seen:
        conformance.test_global_state_is_left_alone(impl, task, example)
        if seen.started:
            question = "The work is done when the call returns; what goes on beside it?"
            raise Mismatch(question, f"the code starts {seen.started[0]}")


def test_nothing_is_looked_up(impl: Any, task: str, example: KernelExample) -> None:
    """The answer is computed: no file is opened, no caller and no setting is asked, and neither
    the oracle nor a solution is imported.
    """
    _nothing_is_asked(impl, task, example)
    conformance.test_nothing_is_looked_up(impl, task, example)


@_beside_the_kernel
def _nothing_is_asked(impl: Any, task: str, example: KernelExample) -> None:
    from paperlings.lanes import watch

    with watch.over(impl) as seen:
        for _ in range(2):  # at the first launch, triton itself reads the file
            example.run(impl, task, example.arguments())
        if seen.asked:
            question = "All that the task needs, the device too, comes in through its arguments."
            raise Mismatch(question, f"the code {seen.asked[0]}")


@_beside_the_kernel
def test_the_judge_is_left_alone(impl: Any, task: str, example: KernelExample) -> None:
    """Clocks, comparisons and the functions of torch and triton stay what they are, and no stream
    and no graph is opened.
    """
    from paperlings.lanes import watch

    with watch.over(impl) as seen:
        example.run(impl, task, example.arguments())
        question = "What is measured is this call, by functions that belong to others."
        if changed := seen.changed():
            raise Mismatch(question, f"the code replaces {', '.join(changed[:3])}")
        if seen.opened:
            raise Mismatch(question, f"the code opens {seen.opened[0]}")


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]


def _recorded(call: Callable[[], Any]) -> tuple[Any, Record]:
    """What a call answers, and what its kernels did."""
    from paperlings.lanes import traffic

    with traffic.recorded() as record:
        answer = call()
    return answer, record


def _check_work(args: tuple[Any, ...], answer: Any, record: Record, given: str) -> None:
    """Check that kernels read all of the inputs and wrote all of the answers."""
    if not record.launches:
        raise Mismatch(BUSY, f"no kernel is launched{given}")
    for i, x in enumerate(_tensors(args)):
        if not record.has_read(x):
            raise Mismatch(BUSY, f"no kernel reads all of input tensor {i}{given}")
    for i, x in enumerate(_tensors(answer)):
        if not record.has_written(x):
            raise Mismatch(BUSY, f"no kernel writes all of answer {i}{given}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _fresh(leaf: Any, generator: torch.Generator) -> Any:
    """Other values that are as good: floating ones scaled, others shuffled unless they ascend."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point():
        scales = 0.5 + torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        return (leaf.double() * scales).to(leaf.dtype)
    if leaf.dim() and bool((leaf[..., 1:] >= leaf[..., :-1]).all()):
        return leaf
    places = torch.randperm(leaf.numel(), generator=generator)
    return leaf.reshape(-1)[places].reshape(leaf.shape)


def _spread(leaf: Any) -> Any:
    """A view of the same values, each beside another, from an odd offset on."""
    if not isinstance(leaf, Tensor):
        return leaf
    others = leaf.flatten().flip(0).reshape(leaf.shape)
    if leaf.is_floating_point():
        others.fill_(float("nan"))
    return torch.stack([others, leaf], dim=-1)[..., 1]


# floating values among which a kernel could find something to skip
REPEATED: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "one constant": lambda x: torch.full_like(x, 0.5),
    "equal rows": lambda x: x[:1].expand_as(x).contiguous() if x.dim() > 1 else x,
}


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _described(value: Any) -> str:
    if type(value) is not Tensor:
        return f"a {type(value).__name__}"
    return f"a tensor that carries {', '.join(vars(value))}"
