"""A module across the boundary is used as one in this process is."""

from __future__ import annotations

import copy
import functools
import math
import os
import signal
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperlings import layout, loading
from paperlings.limits import TimeLimit, time_limit
from paperlings.sealed import chance, drivers, nursery, proxy
from paperlings.sealed.wire import Uncrossable, WireError
from paperlings.testing import driver, fill, measure, seeded
from paperlings.testing.effects import effects

KEY = "demo/sample"
SECRET = "what only the tests know"
FACTOR = 3.0
TEXT = """
import os, random, time
from typing import NamedTuple
import torch
from torch import nn

CONSTANT = {"a": (1, 2.5)}

class Pair(NamedTuple):
    first: object
    second: object

def scaled(x, *, by=2.0):
    if by <= 0:
        raise ValueError(f"by must be positive, got {by}")
    return x * by

def cube(x):
    return x**3

def unwritten(x):
    raise NotImplementedError("unwritten")

def strides(x):
    return x.stride()

def kinds(*values):
    return [type(value).__name__ for value in values]

def same(x, y):
    return x is y

def pair(x):
    return Pair(x, {"twice": 2 * x})

def zeroed(x):
    x.detach().zero_()
    return x

def seeded():
    torch.manual_seed(0)

def without_gradients():
    torch.set_grad_enabled(False)

def inverted(x):
    return torch.linalg.inv(x)

def dropped(n):
    return nn.functional.dropout(torch.ones(n), 0.5)

def looked_up():
    try:
        open(__file__).close()
    except OSError:
        pass

def drawn(n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64)

def rewound(generator, seed):
    generator.manual_seed(seed)

def called(function, x):
    return function(x) + 1

def counted(n):
    for i in range(n):
        yield torch.full((2,), float(i))

def printed(text):
    print(text)

def gone(signal=None):
    os.kill(os.getpid(), signal) if signal else os._exit(7)

def slept(seconds):
    time.sleep(seconds)

def inner_mode():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None

class Net(nn.Module):
    def __init__(self, n, m, *, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(n, m), nn.Tanh())
        self.out = nn.Linear(m, n, bias=False)
        self.tied = self.out
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.width = m

    def forward(self, x):
        self.seen += 1
        return self.out(self.inner(x)) * (0.5 if self.training else 1.0)

    def doubled(self, x):
        return 2 * self(x)

    def shifted(self):
        with torch.no_grad():
            self.out.weight += 1.0

def size_of(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

def loss_of(model, x):
    return model(x).square().mean()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission with a module that has a bit of everything."""
    folder = tmp_path_factory.mktemp("submission")
    (folder / "demo").mkdir()
    (folder / f"{KEY}.py").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def impl(root: Path) -> Iterator[Any]:
    """It, sealed."""
    module = nursery.load(root, KEY)
    yield module
    module.close()


@pytest.fixture(scope="module")
def here(root: Path) -> Any:
    """It, in this process."""
    return loading.load(root / f"{KEY}.py", "here.sample")


def numbers(*shape: int) -> Tensor:
    return torch.linspace(-1.0, 2.0, math.prod(shape), dtype=torch.float64).reshape(shape)


# ---- functions and data


def test_a_function_answers_as_here(impl: Any, here: Any) -> None:
    """Values, dtype and shape."""
    x = numbers(2, 3)
    assert torch.equal(impl.scaled(x, by=0.5), here.scaled(x, by=0.5))
    assert impl.CONSTANT == here.CONSTANT
    assert impl.scaled(2) == 4.0


def test_a_module_says_where_it_lies(impl: Any, root: Path) -> None:
    """As an unsealed one does."""
    assert Path(impl.__file__).is_relative_to(root)


def test_arguments_arrive_as_what_they_are(impl: Any) -> None:
    """Strides, parameters, and that two arguments are one."""
    x = numbers(2, 3)
    assert impl.strides(x.T) == x.T.stride()
    assert impl.kinds(x, nn.Parameter(x), 1, 1.0, "", [x], (x,), {}) == [
        *("Tensor", "Parameter", "int", "float", "str", "list", "tuple", "dict")
    ]
    assert impl.same(x, x)
    assert not impl.same(x, x.clone())


def test_a_named_tuple_comes_back_with_its_names(impl: Any) -> None:
    """And with its tensors."""
    found = impl.pair(numbers(2))
    assert torch.equal(found.second["twice"], 2 * found.first)


def test_what_a_generator_function_yields_comes_one_by_one(impl: Any) -> None:
    """An iterator stays there, and is asked for its items."""
    assert [float(x[0]) for x in impl.counted(3)] == [0.0, 1.0, 2.0]


def test_what_is_printed_is_shown_without_escapes(impl: Any, capsys: Any) -> None:
    """As if it had been printed here, but for what a terminal would obey."""
    impl.printed("hello\x1b[2J")
    assert capsys.readouterr().out == "hello?[2J\n"


def test_what_cannot_cross_is_named(impl: Any) -> None:
    """A test that gives it is told so."""
    with pytest.raises(Uncrossable, match="sparse"):
        impl.kinds(torch.eye(2).to_sparse())
    with pytest.raises(Uncrossable, match="a set cannot cross"):
        impl.kinds({1})
    assert impl.scaled(1) == 2.0


# ---- gradients


def test_gradients_go_through(impl: Any, here: Any) -> None:
    """Once, twice, and by what is computed before and after."""
    x = numbers(3).requires_grad_(True)

    def third(module: Any) -> Tensor:
        first = torch.autograd.grad(module.cube(2 * x).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
        return torch.autograd.grad((second * x).sum(), x)[0]

    assert torch.allclose(third(impl), third(here))
    assert torch.autograd.gradgradcheck(impl.cube, (x,))


def test_what_needs_no_gradient_has_none(impl: Any) -> None:
    """As in this process: no graph without a leaf that asks, nor under no_grad."""
    assert not impl.cube(numbers(2)).requires_grad
    with torch.no_grad():
        assert not impl.cube(numbers(2).requires_grad_(True)).requires_grad
        assert impl.inner_mode() == (False, False)
    with torch.inference_mode():
        assert impl.inner_mode() == (False, True)
    assert impl.inner_mode() == (True, False)


def test_a_function_of_autograd_is_applied(impl: Any) -> None:
    """Its backward is its own, right or wrong."""
    x = numbers(3).requires_grad_(True)
    impl.Sign.apply(x, 5.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 5.0, 5.0]


def test_graphs_that_nobody_needs_are_let_go(impl: Any) -> None:
    """What the judge no longer holds, the candidate no longer keeps."""
    x = numbers(3).requires_grad_(True)
    for _ in range(5):
        impl.cube(x).sum().backward()
    link = impl.__dict__["_link"]
    impl.scaled(1)
    assert len(link.released) <= 1


# ---- modules


def test_a_module_has_the_parts_of_its_twin(impl: Any, here: Any) -> None:
    """Parameters, buffers, state and submodules, by name and by value."""
    there, twin = fill(impl.Net(3, 4)), fill(here.Net(3, 4))
    for name in ("named_parameters", "named_buffers"):
        mine, other = dict(getattr(there, name)()), dict(getattr(twin, name)())
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert there.state_dict().keys() == twin.state_dict().keys()
    assert there.tied.weight is there.out.weight
    assert there.width == 4
    x = numbers(2, 3)
    assert torch.allclose(there(x), twin(x))
    assert torch.allclose(there.doubled(x), twin.doubled(x))
    assert torch.allclose(there.inner[0](x), twin.inner[0](x))


def test_a_module_is_in_the_mode_that_it_is_put_into(impl: Any) -> None:
    """train and eval reach it."""
    there, x = fill(impl.Net(3, 4)), numbers(2, 3)
    assert torch.allclose(2 * there.train()(x), there.eval()(x))


def test_a_module_changes_its_own_state(impl: Any) -> None:
    """Buffers that count, and parameters that a method moves, are seen here."""
    there = fill(impl.Net(3, 4))
    before = there.out.weight.detach().clone()
    there(numbers(2, 3))
    there(numbers(2, 3))
    there.shifted()
    assert int(there.seen) == 2
    assert torch.allclose(there.out.weight, before + 1)
    saved = copy.deepcopy(there.state_dict())
    other = impl.Net(3, 4)
    other.load_state_dict(saved)
    assert torch.allclose(other.double()(numbers(2, 3)), there(numbers(2, 3)))


def test_an_optimiser_here_trains_a_module_there(impl: Any, here: Any) -> None:
    """Gradients arrive in the parameters, and steps are seen by the next call."""
    losses = []
    for module in (impl, here):
        model = fill(module.Net(3, 4))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            loss = module.loss_of(model, numbers(2, 3))
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


class Own(nn.Module):
    """A module of the tests'."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w * FACTOR


def test_a_module_of_the_judge_crosses(impl: Any) -> None:
    """One of torch's layers, and one of the tests' own that must learn."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    assert impl.size_of(model) == 12
    own = Own()
    impl.loss_of(own, numbers(3)).backward()
    assert own.w.grad is not None
    assert torch.allclose(own.w.grad, 2 * FACTOR**2 * numbers(3) ** 2 / 3)


# ---- chance


@pytest.mark.parametrize("count", [0, 1, 3, 17, 5000])
def test_a_generator_advances_as_here(impl: Any, here: Any, count: int) -> None:
    """What is drawn is the same, and so is what is drawn after it."""
    mine, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    assert torch.equal(impl.drawn(count, mine), here.drawn(count, other))
    assert torch.equal(torch.rand(3, generator=mine), torch.rand(3, generator=other))


def test_a_generator_cannot_be_set_to_what_the_candidate_likes(impl: Any) -> None:
    """A state that drawing does not reach is refused, and the judge's stays as it was."""
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    with pytest.raises(proxy.Gone, match="generator"):
        impl.rewound(generator, 6)
    assert torch.equal(generator.get_state(), before)


def test_a_state_is_checked_byte_by_byte() -> None:
    """No word of the twister, no seed and no kept normal can be chosen."""
    generator = torch.Generator().manual_seed(5)
    ahead = torch.Generator().manual_seed(5)
    torch.rand(1000, generator=ahead)
    for place in (0, 8, 12, 16, 24, 2000, chance.END - 1, chance.END + 7):
        state = ahead.get_state().clone()
        state[place] = state[place] ^ 0xFF
        with pytest.raises(WireError):
            chance.advance(generator, state)
    chance.advance(generator, ahead.get_state())
    assert torch.equal(generator.get_state(), ahead.get_state())


# ---- errors


def test_an_error_comes_with_its_words_and_its_place(impl: Any, root: Path) -> None:
    """As if it had been raised here, in the submission's file."""
    with pytest.raises(ValueError, match="by must be positive, got -1") as caught:
        impl.scaled(1, by=-1)
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert frame.filename == str(root / f"{KEY}.py")
    assert frame.name == "scaled"
    assert "raise ValueError" in (frame.line or "")


def test_an_error_of_torch_keeps_its_kind(impl: Any) -> None:
    """So it is like the error of a known mistake."""
    with pytest.raises(torch.linalg.LinAlgError):
        impl.inverted(torch.zeros(2, 2))


def test_a_stub_says_its_name(impl: Any) -> None:
    """A stub's own NotImplementedError is one here too."""
    with pytest.raises(NotImplementedError) as caught:
        impl.unwritten(1)
    assert caught.value.args == ("unwritten",)


def test_what_is_not_there_is_missed_by_name(impl: Any) -> None:
    """As of any module."""
    with pytest.raises(AttributeError) as caught:
        impl.nothing  # noqa: B018
    assert caught.value.name == "nothing"
    assert caught.value.obj is impl
    assert not hasattr(impl, "nothing")


def test_an_error_of_a_function_of_the_judge_stays_itself(impl: Any) -> None:
    """It goes through the candidate, and comes out as it was."""

    class Own(Exception):
        pass

    def broken(x: Tensor) -> Tensor:
        raise Own

    assert impl.called(lambda x: x + 1, 1) == 3
    with pytest.raises(Own):
        impl.called(broken, 1)
    assert impl.called(lambda x: impl.scaled(x), 1) == 3.0


def test_a_call_without_end_is_a_time_out(impl: Any) -> None:
    """And another process takes the place of the one that was ended."""
    with pytest.raises(TimeLimit), time_limit(0.3):
        impl.slept(60)
    assert impl.scaled(1) == 2.0


def test_a_process_that_ends_says_how(impl: Any) -> None:
    """By itself, or by a signal; and again another takes its place."""
    with pytest.raises(proxy.Gone, match=r"exit status 7"):
        impl.gone()
    assert impl.scaled(1) == 2.0
    old = impl.scaled
    with pytest.raises(proxy.Gone, match="SIGABRT"):
        impl.gone(int(signal.SIGABRT))
    with pytest.raises(proxy.Gone):  # a function of a process that is no more
        old(1)
    assert impl.scaled(1) == 2.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = (", "line 1"),
        ("import no_such_module", "'no_such_module', which is not installed"),
        ("x = 1\nraise KeyError('k')", r"raises KeyError while it is imported, line 2: .k."),
        ("import os\nos._exit(3)", "exit status 3"),
    ],
)
def test_what_cannot_be_imported_says_why(tmp_path: Path, text: str, says: str) -> None:
    """In the words of an unsealed import."""
    (tmp_path / "demo").mkdir()
    (tmp_path / f"{KEY}.py").write_text(text)
    with pytest.raises(loading.Unloadable, match=says):
        nursery.load(tmp_path, KEY)


# ---- what is done besides


def test_inputs_are_written_only_where_a_law_asks(impl: Any) -> None:
    """Elsewhere the judge's tensors cannot be reached."""
    x = numbers(3)
    impl.zeroed(x)
    assert torch.equal(x, numbers(3))
    with effects():
        impl.zeroed(x)
    assert not x.any()


def test_effects_are_seen_where_they_happen(impl: Any) -> None:
    """Seeds and modes that are set, and files that are opened."""
    with effects() as found:
        impl.seeded()
    assert found.changed == ["torch's random state"]
    with effects() as found:
        impl.without_gradients()
    assert found.changed == ["the gradient mode"]
    with effects() as found:
        impl.looked_up()
    assert "sample.py" in found.seen[0]
    with effects() as found:
        impl.scaled(1)
    assert not found.changed
    assert not found.seen


def test_what_a_call_makes_is_measured_where_it_is_made(impl: Any, here: Any) -> None:
    """Largest, made, kept and operators, of a call and of its derivative."""
    for call in (lambda m, x: m.cube(x), lambda m, x: m.cube(x).sum().backward()):
        there, mine = (
            measure(functools.partial(call, m, numbers(4).requires_grad_(True)))
            for m in (impl, here)
        )
        assert (there.largest, there.count("pow")) == (mine.largest, mine.count("pow"))
        assert there.kept == mine.kept
    assert measure(lambda: impl.scaled(numbers(4))).kept == 4


# ---- drivers


@driver
def surroundings(impl: Any) -> list[str]:
    """What a driver finds around itself."""
    return [str(os_pid()), *sorted(name for name in globals() if not name.startswith("__"))]


def os_pid() -> int:
    import os

    return os.getpid()


@driver
def trained(impl: Any, x: Tensor, generator: torch.Generator, rate: float = 0.1) -> dict[str, Any]:
    """Steps of an optimiser on the candidate's side."""
    model = fill(impl.Net(3, 4))
    optimiser = torch.optim.SGD(model.parameters(), lr=rate * FACTOR)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = impl.loss_of(model, x + torch.randn(x.shape, generator=generator, dtype=x.dtype))
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return {"losses": losses, "steps": 2}


def test_a_driver_runs_where_the_candidate_is(impl: Any) -> None:
    """In its process, with what it reads and nothing else of the tests."""
    pid, *names = surroundings(impl)
    assert pid != str(os.getpid())
    assert set(names) == {"surroundings", "os_pid", "driver", "Any"} - {"Any"}


def test_a_driver_answers_as_here(impl: Any, here: Any) -> None:
    """Values, and a generator that has advanced."""
    answers = []
    for module in (impl, here):
        generator = torch.Generator().manual_seed(3)
        told = trained(module, numbers(2, 3), generator)
        answers.append([*told["losses"], torch.rand(1, generator=generator)])
    assert all(torch.allclose(a, b) for a, b in zip(*answers, strict=True))


def test_chance_that_is_no_argument_is_seeded_there(impl: Any, here: Any) -> None:
    """What draws from torch's global state draws as here."""
    answers = []
    with torch.random.fork_rng():
        for module in (impl, here):
            seeded(module, 3)
            answers.append(module.dropped(20))
    assert torch.equal(*answers)


def test_a_driver_takes_only_what_it_reads() -> None:
    """Its text and its helpers', constants by name, libraries by import; no secret beside it."""
    goods = drivers.shipment(trained)
    assert goods.values == {"FACTOR": FACTOR}
    assert [text.count("def ") for text in goods.texts] == [1]
    assert SECRET not in "\n".join(goods.texts)
    assert goods.imports["fill"] == ("paperlings.testing.strategies", "fill")


# ---- what is graded


def test_only_plain_files_are_graded(tmp_path: Path) -> None:
    """No links, whole or part of the way, nor what is no text."""
    target = tmp_path / "target.py"
    target.write_text("x = 1\n")
    for number, make in enumerate(
        (
            lambda path: path.symlink_to(target),
            lambda path: os.link(target, path),
            lambda path: os.mkfifo(path),
            lambda path: path.mkdir(),
            lambda path: path.write_bytes(b"\xff"),
            lambda path: path.write_text("#" * (loading.LARGEST + 1)),
        )
    ):
        root = tmp_path / str(number)
        (root / "demo").mkdir(parents=True)
        make(root / f"{KEY}.py")
        with pytest.raises(loading.Unloadable):
            nursery.source(root, KEY)
    assert layout.source(tmp_path, KEY) == tmp_path / f"{KEY}.py"
    assert textwrap.dedent(TEXT).startswith("\n")
