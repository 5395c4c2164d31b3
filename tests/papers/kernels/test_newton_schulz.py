"""What judges kernels/newton_schulz."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlings.lanes.compiled import assert_compiles, tensor
from paperlings.testing import (
    assert_as_exact_as_torch,
    assert_at_most,
    assert_close,
    drawn,
    measure,
    rejects,
)
from paperlings.testing.kernel_laws import KernelExample
from paperlings.testing.spread import spread
from paperlings.testing.traffic import traffic

NAN = math.nan
COEFFS = (3.4445, -4.7750, 2.0315)
B, C = -1.75, 0.625  # coefficients that are nobody's default
# of a batch of matrices: around the sizes of tiles, and far from them
SHAPES = ((3, 1, 1), (1, 1, 70), (2, 17, 33), (1, 63, 65), (2, 64, 64), (1, 65, 129), (1, 300, 40))
EXACT = "Are sums kept in float32, over every element of both factors, and rounded once?"
MEMORY = "What does a step need besides A, P and the new X?"
NEAR = "With how many others is an element multiplied while it is near?"


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Distinct values of magnitude about `scale`, in bfloat16."""
    return (scale * wide_numbers(*shape, seed=seed)).bfloat16()


def wide_numbers(*shape: int, seed: int = 0) -> Tensor:
    """Distinct values of magnitude about 1, in float32."""
    return torch.randn(shape, generator=drawn(seed + 1))


def symmetric(batch: int, m: int, seed: int = 0) -> Tensor:
    """Symmetric matrices in bfloat16."""
    x = wide_numbers(batch, m, m, seed=seed)
    return (x + x.mT).bfloat16()


def conditioned(m: int, n: int, cond: float, seed: int = 0) -> Tensor:
    """A float32 matrix whose singular values fall from 1 to 1 / cond in equal ratios."""
    U, _, Vt = torch.linalg.svd(wide_numbers(m, n, seed=seed), full_matrices=False)
    return (U * cond ** -torch.linspace(0, 1, min(m, n))) @ Vt


def spiked(row: int, col: int) -> Tensor:
    """Matrices of which one element outweighs all others."""
    x = wide_numbers(2, 20, 90)
    x[:, row, col] += 50.0
    return x


# batches of matrices, not for the sake of their shapes
FAMILIES: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: wide_numbers(2, 20, 90),
    "tiny": lambda: 2.0**-30 * wide_numbers(2, 20, 90, seed=1),
    "huge": lambda: 2.0**30 * wide_numbers(2, 20, 90, seed=2),
    "constant": lambda: torch.full((2, 20, 90), 0.75),
    "rows apart": lambda: wide_numbers(2, 20, 90, seed=3) * 2.0 ** torch.arange(20)[:, None],
    "first": lambda: spiked(0, 0),
    "last": lambda: spiked(-1, -1),
    "long": lambda: wide_numbers(1, 20, 3000, seed=4).abs(),
}


# what torch answers, in float32 and rounded once


def eager_xxt(X: Tensor) -> Tensor:
    x = X.float()
    return (x @ x.mT).bfloat16()


def eager_polynomial(A: Tensor, b: float = B, c: float = C) -> Tensor:
    x = A.float()
    return (b * x + c * (x @ x)).bfloat16()


def eager_combine(X: Tensor, P: Tensor, a: float) -> Tensor:
    x = X.float()
    return (a * x + P.float() @ x).bfloat16()


def eager_newton_schulz(G: Tensor, steps: int = 5) -> Tensor:
    a, b, c = COEFFS
    tall = G.shape[-2] > G.shape[-1]
    X = (G.mT if tall else G).float()
    X = (X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        X = eager_combine(X, eager_polynomial(eager_xxt(X), b, c), a)
    return X.mT if tall else X


def check_newton_schulz(
    impl: Any, reference: Any, G: Tensor, question: str, steps: int = 2
) -> None:
    """Compare the whole iteration, matrix by matrix: every error of a row reaches the others."""
    out = impl.newton_schulz(G, steps=steps)
    truth = reference.newton_schulz(G, steps=steps)
    assert_as_exact_as_torch(out, truth, eager_newton_schulz(G, steps), question, rows=2)


def far_apart(x: Tensor, axis: int) -> Tensor:
    """The same matrices, whose members, or rows, are 2^30 + 16 places apart."""
    steps = list(x.stride())
    steps[axis] = 2**30 + 16
    return spread(x, steps)


def apart(x: Tensor) -> Tensor:
    """The same values in memory of which the rest is NaN, that starts at an odd place."""
    batch, m, n = x.shape
    memory = torch.full((batch, m, n + 5), NAN, dtype=x.dtype)
    return memory[:, :, 3:-2].copy_(x)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "apart": apart,
    "transposed": lambda x: x.mT.contiguous().mT,
    "repeated": lambda x: x[:1].expand(3, -1, -1),
}

# every value differs from its neighbours
EXAMPLES = {
    "xxt": KernelExample(args=(numbers(1, 20, 33),)),
    "polynomial": KernelExample(args=(symmetric(1, 20),), kwargs={"b": B, "c": C}),
    "combine": KernelExample(
        args=(numbers(1, 20, 33), numbers(1, 20, 20, seed=1)), kwargs={"a": 2.5}
    ),
    "newton_schulz": KernelExample(
        args=(numbers(20, 33),), kwargs={"steps": 1}, torch_may=("linalg_vector_norm",)
    ),
}


# ---- 1 xxt


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xxt_multiplies_every_row_with_every_row(impl, reference, shape):
    """A[i, j] is the product of rows i and j, for matrices of any size."""
    x = numbers(*shape)
    question = "Which tiles are computed, where does each go, and where does its mirror?"
    assert_as_exact_as_torch(impl.xxt(x), reference.xxt(x), eager_xxt(x), question)


@pytest.mark.parametrize("family", FAMILIES)
def test_xxt_is_exact_before_it_is_rounded(impl, reference, family):
    """Sums are taken in float32 and rounded to bfloat16 once, however long they are."""
    x = FAMILIES[family]().bfloat16()
    assert_as_exact_as_torch(impl.xxt(x), reference.xxt(x), eager_xxt(x), EXACT)


@pytest.mark.parametrize("view", VIEWS)
def test_xxt_reads_views(impl, reference, view):
    """X may have any strides and start anywhere; A is contiguous."""
    x = VIEWS[view](numbers(3, 70, 40))
    A = impl.xxt(x)
    question = "By which stride is each index multiplied?"
    assert_as_exact_as_torch(A, reference.xxt(x), eager_xxt(x), question)
    assert A.is_contiguous(), "A is not contiguous: whose strides does it have?"


@pytest.mark.parametrize("axis", [0, 1])
def test_xxt_reaches_beyond_two_billion_elements(impl, reference, axis):
    """Matrix 2, or row 2, of this X lies 2^31 places behind the first."""
    x = far_apart(numbers(3, 3, 20), axis)
    question = "How far does an offset of 32 bits reach?"
    assert_as_exact_as_torch(impl.xxt(x), reference.xxt(x), eager_xxt(x), question)


def test_xxt_computes_half_of_a_symmetric_matrix(impl):
    """Of 2 m^2 n operations at most 3/4 are done: tiles below the diagonal are copied."""
    x = numbers(1, 256, 128)
    record = traffic(impl, impl.xxt, x)
    question = "Which tiles are known before they are computed?"
    assert_at_most(record.flops, 0.75 * 2 * 256 * 256 * 128, question, "the number of operations")
    assert record.dot_dtypes == {"bf16"}, f"tensor cores take bf16, not {set(record.dot_dtypes)}"


def test_xxt_stores_once_and_loads_large_tiles(impl):
    """One launch stores every number of A once, and loads X at most as tiles of 64 x 64 do."""
    x = numbers(1, 256, 128)
    record = traffic(impl, impl.xxt, x)
    assert_at_most(record.launches, 1, "Is A whole after one?", "the number of launches")
    question = "Which numbers are stored twice, or are not asked for?"
    assert_at_most(record.stored, 1.05 * 256 * 256 * 2, question, "the number of bytes stored")
    assert_at_most(record.loaded, 1.05 * 10 * 2 * 64 * 128 * 2, NEAR, "the number of bytes loaded")


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.zeros(3, 4).bfloat16(), ((3, 4),)),
        (torch.zeros(2, 3, 4, 5).bfloat16(), ((2, 3, 4, 5),)),
        (torch.zeros(2, 3, 4), ("float32",)),
        (torch.zeros(2, 3, 4).half(), ("float16",)),
    ],
)
def test_xxt_refuses_what_it_cannot_multiply(impl, x, named):
    """xxt refuses what is no batch of matrices, or not bfloat16."""
    with rejects(*named):
        impl.xxt(x)


# ---- 2 polynomial


@pytest.mark.parametrize("m", [1, 17, 64, 65, 150])
def test_polynomial_acts_on_eigenvalues(impl, reference, m):
    """P has the eigenvectors of A, and the eigenvalue b w + c w^2 for each w, whatever its size."""
    A = symmetric(2, m)
    assert_as_exact_as_torch(
        impl.polynomial(A, b=B, c=C),
        reference.polynomial(A, b=B, c=C),
        eager_polynomial(A),
        "Which tile of A is added to which tile of A A, and what is each multiplied by?",
    )


@pytest.mark.parametrize(("b", "c"), [(1.0, 0.0), (0.0, 1.0), (-4.775, 2.0315), (1e-4, 3.0)])
def test_polynomial_has_two_terms(impl, reference, b, c):
    """b multiplies A, and c multiplies A A."""
    A = symmetric(3, 40, seed=1)
    assert_as_exact_as_torch(
        impl.polynomial(A, b=b, c=c),
        reference.polynomial(A, b=b, c=c),
        eager_polynomial(A, b, c),
        "What is b of, and what is c of?",
    )


@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**30])
def test_polynomial_is_exact_before_it_is_rounded(impl, reference, scale):
    """The product, both terms and their sum are float32, even where the terms nearly cancel; only P
    is bfloat16.
    """
    Q = torch.linalg.qr(wide_numbers(1, 130, 50, seed=2)).Q
    A = (scale * Q @ Q.mT).bfloat16()  # A A is nearly scale A
    b, c = -scale, 1.0
    assert_as_exact_as_torch(
        impl.polynomial(A, b=b, c=c),
        reference.polynomial(A, b=b, c=c),
        eager_polynomial(A, b, c),
        EXACT,
    )


@pytest.mark.parametrize("view", VIEWS)
def test_polynomial_reads_views(impl, reference, view):
    """A may have any strides and start anywhere; P is contiguous."""
    A = VIEWS[view](symmetric(3, 70))
    P = impl.polynomial(A, b=B, c=C)
    question = "By which stride is each index multiplied?"
    truth = reference.polynomial(A, b=B, c=C)
    assert_as_exact_as_torch(P, truth, eager_polynomial(A), question)
    assert P.is_contiguous(), "P is not contiguous: whose strides does it have?"


@pytest.mark.parametrize("axis", [0, 1])
def test_polynomial_reaches_beyond_two_billion_elements(impl, reference, axis):
    """Matrix 2, or row 2, of this A lies 2^31 places behind the first."""
    A = far_apart(symmetric(3, 3), axis)
    assert_as_exact_as_torch(
        impl.polynomial(A, b=B, c=C),
        reference.polynomial(A, b=B, c=C),
        eager_polynomial(A),
        "How far does an offset of 32 bits reach?",
    )


def test_polynomial_computes_half_of_a_symmetric_matrix(impl):
    """Of 2 m^3 operations at most 3/4 are done, in one launch that leaves no A A behind."""
    A = symmetric(1, 256)
    record = traffic(impl, impl.polynomial, A, b=B, c=C)
    question = "Which tiles are known before they are computed?"
    assert_at_most(record.flops, 0.75 * 2 * 256**3, question, "the number of operations")
    assert record.dot_dtypes == {"bf16"}, f"tensor cores take bf16, not {set(record.dot_dtypes)}"
    question = "Is b A added where the product still is?"
    assert_at_most(record.launches, 1, question, "the number of launches")
    assert_at_most(record.stored, 1.05 * 256 * 256 * 2, question, "the number of bytes stored")
    tiles = 10 * (2 * 64 * 256 + 64 * 64)
    assert_at_most(record.loaded, 1.05 * tiles * 2, NEAR, "the number of bytes loaded")


@pytest.mark.parametrize(
    ("A", "named"),
    [
        (torch.zeros(4, 4).bfloat16(), ((4, 4),)),
        (torch.zeros(2, 3, 4).bfloat16(), ((2, 3, 4),)),
        (torch.zeros(2, 4, 3).bfloat16(), ((2, 4, 3),)),
        (torch.zeros(2, 3, 3).half(), ("float16",)),
    ],
)
def test_polynomial_refuses_what_it_cannot_multiply(impl, A, named):
    """polynomial refuses what is no batch of square matrices, or not bfloat16."""
    with rejects(*named):
        impl.polynomial(A, b=B, c=C)


# ---- 3 combine


@pytest.mark.parametrize("shape", [*SHAPES, (1, 40, 300)], ids=str)
def test_combine_multiplies_and_adds(impl, reference, shape):
    """a X + P X, for matrices of any size, and P that need not be symmetric."""
    X, P = numbers(*shape), numbers(*shape[:2], shape[1], seed=1)
    assert_as_exact_as_torch(
        impl.combine(X, P, a=-2.25),
        reference.combine(X, P, a=-2.25),
        eager_combine(X, P, -2.25),
        "On which side of X does P stand, and what is added to which tile?",
    )


@pytest.mark.parametrize("a", [0.0, 1.0, -3.5, 300.0])
def test_combine_is_exact_before_it_is_rounded(impl, reference, a):
    """The product, a X and their sum are float32, even where the two nearly cancel; only the answer
    is bfloat16.
    """
    X, P = numbers(1, 130, 20), numbers(1, 130, 130, seed=1, scale=1e-3)
    P[:, range(130), range(130)] = -a
    assert_as_exact_as_torch(
        impl.combine(X, P, a=a), reference.combine(X, P, a=a), eager_combine(X, P, a), EXACT
    )


@pytest.mark.parametrize("family", ["tiny", "huge", "rows apart", "last"])
def test_combine_takes_any_range(impl, reference, family):
    """Tiny, huge and uneven matrices come out as exact as torch's."""
    X, P = FAMILIES[family]().bfloat16(), numbers(2, 20, 20, seed=1)
    assert_as_exact_as_torch(
        impl.combine(X, P, a=0.5), reference.combine(X, P, a=0.5), eager_combine(X, P, 0.5), EXACT
    )


@pytest.mark.parametrize("view", VIEWS)
def test_combine_reads_views(impl, reference, view):
    """X and P may have any strides and start anywhere; the answer is contiguous."""
    X, P = numbers(3, 20, 70), numbers(3, 20, 20, seed=1)
    for case in ((VIEWS[view](X), P), (X, VIEWS[view](P))):
        out = impl.combine(*case, a=0.5)
        truth, eager = reference.combine(*case, a=0.5), eager_combine(*case, 0.5)
        assert_as_exact_as_torch(out, truth, eager, "By which stride is each index multiplied?")
        assert out.is_contiguous(), "The answer is not contiguous: whose strides does it have?"


@pytest.mark.parametrize("axis", [0, 1])
def test_combine_reaches_beyond_two_billion_elements(impl, reference, axis):
    """Matrix 2, or row 2, of this X, and of this P, lies 2^31 places behind the first."""
    X, P = numbers(3, 3, 20), numbers(3, 3, 3, seed=1)
    far = far_apart(X, axis), far_apart(P, axis)
    assert_as_exact_as_torch(
        impl.combine(*far, a=0.5),
        reference.combine(X, P, a=0.5),
        eager_combine(X, P, 0.5),
        "How far does an offset of 32 bits reach?",
    )


def test_combine_is_one_product(impl):
    """One launch of 2 m^2 n operations, from tiles of 64 x 64 at least; P X is not stored."""
    X, P = numbers(1, 128, 256), numbers(1, 128, 128, seed=1)
    record = traffic(impl, impl.combine, X, P, a=2.5)
    question = "Is a X added where the product still is?"
    assert_at_most(record.flops, 2 * 128 * 128 * 256, question, "the number of operations")
    assert record.dot_dtypes == {"bf16"}, f"tensor cores take bf16, not {set(record.dot_dtypes)}"
    assert_at_most(record.launches, 1, question, "the number of launches")
    assert_at_most(record.stored, 1.05 * 128 * 256 * 2, question, "the number of bytes stored")
    tiles = 2 * 4 * (2 * 64 * 128 + 64 * 64)
    assert_at_most(record.loaded, 1.05 * tiles * 2, NEAR, "the number of bytes loaded")


@pytest.mark.parametrize(
    ("X", "P", "named"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 3), ((3, 4),)),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), ((2, 3, 4), (2, 4, 4))),
        (torch.zeros(2, 3, 4), torch.zeros(1, 3, 3), ((2, 3, 4), (1, 3, 3))),
        (torch.zeros(2, 3, 4), torch.zeros(3, 3), ((3, 3),)),
    ],
)
def test_combine_refuses_shapes_that_do_not_fit(impl, X, P, named):
    """combine refuses P that is not (b, m, m) for X (b, m, n)."""
    with rejects(*named):
        impl.combine(X.bfloat16(), P.bfloat16(), a=1.0)


def test_combine_refuses_other_dtypes(impl):
    """combine takes bfloat16 only, for X and for P."""
    X, P = torch.zeros(2, 3, 4).bfloat16(), torch.zeros(2, 3, 3).bfloat16()
    with rejects("float32"):
        impl.combine(X.float(), P, a=1.0)
    with rejects("float16"):
        impl.combine(X, P.half(), a=1.0)


# ---- 4 newton_schulz


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (9, 1), (17, 33), (33, 17), (66, 66), (300, 20)], ids=str
)
def test_newton_schulz_acts_on_singular_values(impl, reference, shape):
    """Singular vectors stay, and each singular value goes through the quintic."""
    check_newton_schulz(
        impl,
        reference,
        wide_numbers(*shape),
        "What goes into A, into P and into the next X, and on which side are there fewer rows?",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_newton_schulz_takes_gradients_of_every_dtype(impl, reference, dtype):
    """Whatever the dtype of G, the answer is bfloat16."""
    G = wide_numbers(14, 9).to(dtype)
    check_newton_schulz(impl, reference, G, "Where does G become bfloat16?")


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_newton_schulz_takes_as_many_steps_as_asked(impl, reference, steps):
    """The quintic is applied `steps` times."""
    G = wide_numbers(12, 30)
    check_newton_schulz(impl, reference, G, "How often does the loop run?", steps)


def test_five_steps_unless_told_otherwise(impl, reference):
    """The default of `steps` is 5."""
    G = wide_numbers(12, 30)
    assert_as_exact_as_torch(
        impl.newton_schulz(G),
        reference.newton_schulz(G, steps=5),
        eager_newton_schulz(G),
        "How many steps does Muon take?",
        rows=2,
    )


@pytest.mark.parametrize("family", ["tiny", "huge", "constant", "rows apart"])
def test_newton_schulz_takes_any_range(impl, reference, family):
    """Tiny, huge and uneven gradients come out as exact as torch's."""
    question = "What is divided by the norm, and in which dtype?"
    check_newton_schulz(impl, reference, FAMILIES[family]()[0], question)


def test_singular_values_come_near_one(impl, reference):
    """Of a matrix whose singular values are no less than 0.0052 of its norm, they end in
    [0.63, 1.26] after five steps.
    """
    for m, n, cond in ((24, 24, 30.0), (50, 20, 40.0)):
        values = reference.singular_values(impl.newton_schulz(conditioned(m, n, cond)))
        question = "Do all three coefficients stand where they belong, in every step?"
        assert_at_most(float(values.max()), 1.26, question, "the largest singular value")
        assert_at_most(-float(values.min()), -0.63, question, "minus the smallest singular value")


def test_a_transpose_and_a_sign_pass_through(impl):
    """The answer to G^T is the transpose of that to G, and the answer to -G its negative."""
    G = numbers(2, 40, 18)
    expected = impl.newton_schulz(G, steps=1)
    question = "Is the transpose undone at the end, of every matrix?"
    assert_close(impl.newton_schulz(G.mT, steps=1), expected.mT, question)
    assert_close(impl.newton_schulz(-G, steps=1), -expected, "Which power of X is even?")


def test_the_size_of_a_gradient_does_not_matter(impl):
    """Times a power of two, G is orthogonalised into the same matrix."""
    G = wide_numbers(12, 30)
    expected = impl.newton_schulz(G, steps=2)
    for scale in (2.0**-8, 2.0**40):
        question = "Is the norm that of G as it is?"
        assert_close(impl.newton_schulz(scale * G, steps=2), expected, question)


def test_the_norm_is_as_exact_as_float32(impl, reference):
    """G is divided as it is by its norm as it is, and only then rounded: where either lies between
    two numbers of bfloat16, the answer has no common factor.
    """
    between, little = 1.0 + 2.0**-8, 2.0**-12
    plain, signs = wide_numbers(40, 50), wide_numbers(16, 64).sign()
    # a norm that would be rounded, and entries that would be rounded up, and down
    gradients = (
        plain * between / plain.norm(),
        (between + little) * signs,
        (between - little) * signs,
    )
    for G in gradients:
        truth = torch.from_numpy(reference.newton_schulz(G, steps=1)).float()
        out = impl.newton_schulz(G, steps=1).float()
        assert_close(
            (out * truth).sum() / (truth * truth).sum(),
            torch.tensor(1.0),
            "In which dtype are G and its norm, when the one is divided by the other?",
            rtol=1e-3,  # in bfloat16 both are off by 4e-3, the mean of many roundings by 1e-4
        )


@pytest.mark.parametrize("scale", [1e-5, 3e-7, 2e-8])
def test_a_vanishing_gradient_stays_small(impl, reference, scale):
    """1e-7 is added to the norm, so that what is smaller is shrunk; zeros give zeros."""
    G = conditioned(6, 9, 5.0)
    question = "Where does 1e-7 come in?"
    check_newton_schulz(impl, reference, scale * G / G.norm(), question, 1)
    nothing = torch.zeros(6, 9)
    assert_close(impl.newton_schulz(nothing), nothing.bfloat16(), "What is 0 / 0?")


def test_every_matrix_is_alone(impl, reference):
    """Matrices of a batch are orthogonalised each by its own norm, whatever axes lead."""
    G = wide_numbers(2, 2, 15, 21) * 10.0 ** torch.arange(-4, 8, 3).view(2, 2, 1, 1)
    question = "Over which axes is the norm taken?"
    check_newton_schulz(impl, reference, G, question, 1)
    check_newton_schulz(impl, reference, G.mT[:, 1:], question, 1)


def test_rows_of_zeros_stay_zeros(impl, reference):
    """A neuron without a gradient gets no update."""
    G = wide_numbers(20, 30)
    G[[0, 7, 19]] = 0.0
    out = impl.newton_schulz(G, steps=2)
    assert_close(out[[0, 7, 19]], torch.zeros(3, 30).bfloat16(), "Does a row reach another one?")
    check_newton_schulz(impl, reference, G, "Do zeros count in the products?")


def test_a_matrix_of_rank_one_keeps_its_direction(impl, reference):
    """u v^T becomes 0.70 u v^T of unit length: the only singular value that there is."""
    G = wide_numbers(20, 1) * wide_numbers(1, 30, seed=1)
    check_newton_schulz(impl, reference, G, "What is the norm of u v^T?")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(20, 33), (33, 20)], ids=str)
def test_newton_schulz_reads_views(impl, reference, view, shape):
    """G may have any strides and start anywhere."""
    G = VIEWS[view](numbers(3, *shape))
    check_newton_schulz(impl, reference, G, "By which stride is each index multiplied?", 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_newton_schulz_reaches_beyond_two_billion_elements(impl, reference, axis):
    """Matrix 2, or row 2, of this G lies 2^31 places behind the first."""
    G = far_apart(numbers(3, 3, 20), axis)
    question = "How far does an offset of 32 bits reach?"
    check_newton_schulz(impl, reference, G, question, 1)


def test_a_step_is_three_launches_and_three_tensors(impl):
    """Besides normalising, a step makes A, P and the new X, one launch each, in bfloat16."""
    G = numbers(1, 40, 50)
    launches, made = {}, {}
    for steps in (1, 2):
        made[steps] = measure(lambda n=steps: impl.newton_schulz(G, steps=n))
        launches[steps] = traffic(impl, impl.newton_schulz, G, steps=steps).launches
    assert_at_most(launches[2] - launches[1], 3, MEMORY, "the number of launches of a step")
    assert_at_most(
        made[2].made - made[1].made,
        2 * 40 * 40 + 40 * 50,
        MEMORY,
        "the number of elements that a step makes",
    )
    assert_at_most(made[2].largest, 40 * 50, MEMORY, "the largest tensor made")


def test_a_tall_matrix_is_multiplied_on_its_short_side(impl):
    """Of (500, 20), A is 20 x 20: a step costs 4 r^2 k + 2 r^3 operations with r = 20, padded."""
    G = numbers(500, 20)
    record = traffic(impl, impl.newton_schulz, G, steps=1)
    question = "Which of X X^T and X^T X is the smaller one?"
    # 20 rows are padded to 64 or 128 by tiles of that size
    assert_at_most(record.flops, 4 * 128 * 128 * 512 + 2 * 128**3, question, "the operations")
    assert record.dot_dtypes == {"bf16"}, f"tensor cores take bf16, not {set(record.dot_dtypes)}"


@pytest.mark.parametrize(
    ("G", "steps", "named"),
    [
        (torch.zeros(5), 5, ((5,),)),
        (torch.zeros(()), 5, ("()",)),
        (torch.zeros(3, 4), 0, ("steps", 0)),
        (torch.zeros(3, 4), -2, ("steps", -2)),
        (torch.zeros(3, 4).double(), 5, ("float64",)),
        (torch.zeros(3, 4).long(), 5, ("int64",)),
    ],
)
def test_newton_schulz_refuses_what_it_cannot_iterate(impl, G, steps, named):
    """newton_schulz refuses fewer than two axes, no step and other dtypes."""
    with rejects(*named):
        impl.newton_schulz(G, steps=steps)


# ---- compiled, and timed


@pytest.mark.compiled
def test_xxt_compiles(impl):
    """For three generations of GPUs: tensor cores of its own, no spills, 16 bytes a load."""
    assert_compiles(impl, impl.xxt, tensor("bfloat16", 1, 4096, 4096))


@pytest.mark.compiled
def test_polynomial_compiles(impl):
    """For three generations of GPUs: tensor cores of its own, no spills, 16 bytes a load."""
    assert_compiles(impl, impl.polynomial, tensor("bfloat16", 1, 4096, 4096), b=B, c=C)


@pytest.mark.compiled
def test_combine_compiles(impl):
    """For three generations of GPUs: tensor cores of its own, no spills, 16 bytes a load."""
    X, P = tensor("bfloat16", 1, 4096, 11008), tensor("bfloat16", 1, 4096, 4096)
    assert_compiles(impl, impl.combine, X, P, a=2.5)


@pytest.mark.compiled
def test_newton_schulz_compiles(impl):
    """For three generations of GPUs: no more than a normalisation and three products."""
    assert_compiles(impl, impl.newton_schulz, tensor("bfloat16", 4096, 4096))


@pytest.mark.gate
def test_newton_schulz_beats_a_loop_of_products(impl, gate):
    """Symmetry makes the iteration faster than torch.compile's products."""
    gate(impl)
