"""Muon: momentum, orthogonalised, for the matrices inside a network.

*Paper*  Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein (2024), Muon: An optimizer for
hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/ (a post, no arXiv id).
Read "Definition" first, then "Tuning the coefficients" and "Runtime analysis". Scales of other
shapes: Bernstein and Newhouse, arXiv:2409.20325; Liu et al. (Moonlight), arXiv:2502.16982.

*Why*  The momentum of a weight matrix has a few large singular values and many small ones: a step
along it moves a few directions and neglects the rest. Muon keeps the singular vectors and brings
all singular values near 1. An SVD would do that, slowly; but an odd polynomial of a matrix acts on
its singular values alone, and a steep one, applied five times, takes nothing but matrix products.

*Names*
    G                a gradient, or the momentum that is orthogonalised          (..., m, n)
    U, S, V          the thin singular value decomposition, G = U diag(S) V^T
    X, A             G on its way, and X X^T on the smaller side                 (..., r, r)
    a, b, c          `coeffs`: p(s) = a s + b s^3 + c s^5
    r, k             min(m, n) and max(m, n)
    buf, beta        the momentum buffer, and how much of it is kept             in [0, 1)
    rows, cols       a weight as a matrix; a kernel (o, i, kh, kw) is (o, i kh kw)
    T, m, B          in the run-time bound: steps, model_dim, tokens_per_batch

*Tasks*  ns_scalar, newton_schulz, orthogonalize_svd, momentum_nesterov, shape_scale,
split_parameters, Muon, newton_schulz_flops, overhead.

*Differs*  The buffer is a running mean, as in the authors' code, where the post's has no factor
1 - beta; orthogonalisation cannot tell. A kernel is scaled by its shape as a matrix, where the
authors' code divides kh by kw. p.grad is not written to. A parameter without a gradient is passed
over, where the authors' code decays it. The iteration runs in the dtype of the weights, not in
bfloat16, unless `dtype` says so. torch.optim.Muon takes matrices only, and cuts the norm off at eps
where the post adds eps.

*Limits*  One device. Q, K and V fused into one matrix are treated as one. The names that mark
embeddings and heads are a convention: look at the lists that split_parameters makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COEFFS = (3.4445, -4.7750, 2.0315)


def ns_scalar(x: Tensor, *, steps: int, coeffs: tuple[float, float, float] = COEFFS) -> Tensor:
    """What the iteration does to singular values: any shape -> same  [Tuning the coefficients].

    x <- a x + b x^3 + c x^5, `steps` times; steps = 0 gives x as it is.

    Raises ValueError: steps < 0 ("steps").
    """
    # TODO: check, then apply the polynomial again and again.
    raise NotImplementedError("ns_scalar")


def newton_schulz(
    G: Tensor,
    *,
    steps: int = 5,
    coeffs: tuple[float, float, float] = COEFFS,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Orthogonalise without an SVD: (..., m, n) -> (..., m, n)  [Definition].

    X_0 = G / (||G||_F + eps)
    A = X X^T,  X <- a X + (b A + c A A) X,  `steps` times

    ||G||_F, the root of the sum of squares, is each matrix's own, whatever the batch axes. Where
    m > n the iteration runs on the transpose: A is always r x r with r = min(m, n), and no tensor
    made is larger than G. A step takes three matrix products, 4 r^2 k + 2 r^3 operations with
    k = max(m, n), and nothing is decomposed or inverted.
    The arithmetic is done in `dtype`, by default that of G; the answer has the dtype of G.
    All zeros give zeros. G may be as small as 1e-12, where eps makes the answer smaller than
    elsewhere, and in float64 as large as 1e30. NaN is not looked for, and spreads.

    Raises ValueError: fewer than two axes (names the shape), steps < 1 ("steps").
    """
    # TODO: check, cast, put the smaller side first, normalise, iterate, undo the transpose.
    raise NotImplementedError("newton_schulz")


def orthogonalize_svd(G: Tensor, *, rtol: float | None = None) -> Tensor:
    """What newton_schulz comes near to: (..., m, n) -> (..., m, n)  [Definition].

    U V^T, where G = U diag(S) V^T, without the directions whose singular value is <= rtol max(S)

    It maximises <G, O>, the sum of products of entries, over all O whose largest singular value is
    at most 1. rtol is by default the machine epsilon of G's dtype times max(m, n). All zeros give
    zeros.

    Raises ValueError: fewer than two axes (names the shape).
    """
    # TODO: a thin SVD; leave out what is noise; put U and V together again.
    raise NotImplementedError("orthogonalize_svd")


def momentum_nesterov(
    buf: Tensor, grad: Tensor, *, beta: float = 0.95, nesterov: bool = True
) -> tuple[Tensor, Tensor]:
    """The new buffer and the direction to orthogonalise: any shape, same shape -> that shape twice.

    buf' = beta buf + (1 - beta) grad
    update = beta buf' + (1 - beta) grad with `nesterov`, else buf'

    Neither buf nor grad is written to.

    Raises ValueError: beta outside [0, 1) ("beta"), different shapes (names both).
    """
    # TODO: check, then two running means, the second one looking ahead.
    raise NotImplementedError("momentum_nesterov")


def shape_scale(shape: tuple[int, ...], *, mode: str = "original") -> float:
    """By how much the step of a weight of this shape is multiplied.

    "original"          sqrt(max(1, rows / cols)), the authors' code
    "match_rms_adamw"   0.2 sqrt(max(rows, cols)): entries as large as AdamW's (arXiv:2502.16982)
    "spectral"          sqrt(rows / cols): inputs of root mean square 1 move outputs by about the
                        learning rate at most (arXiv:2409.20325)

    rows is the first size and cols the product of all others, for kernels too.

    Raises ValueError: another mode (names it), fewer than two sizes (names the shape).
    """
    # TODO: check, flatten, one formula a mode.
    raise NotImplementedError("shape_scale")


def split_parameters(
    model: nn.Module,
    *,
    embedding_names: tuple[str, ...] = ("embed",),
    head_names: tuple[str, ...] = ("head",),
    first_conv: bool = True,
) -> tuple[list[str], list[str]]:
    """Muon's parameters and AdamW's: two lists of names  [Empirical considerations].

    AdamW has every parameter with fewer than two axes (gains, biases, scalars); the parameters of
    every nn.Embedding; each whose name contains one of embedding_names or head_names; and, with
    first_conv, those of the first nn.Conv1d, nn.Conv2d or nn.Conv3d of model.modules(), frozen or
    not. Muon has the rest: the hidden matrices and kernels.

    Frozen parameters are in neither list. Parameters that share their data_ptr() are one weight
    under several names: it is listed once, under the first of them, and is AdamW's if it would be
    under any. Both lists are in the order of model.named_parameters().

    Raises ValueError: nothing is left for Muon ("no hidden matrix").
    """
    # TODO: collect the addresses of what is AdamW's by owner or name, then sort every weight once.
    raise NotImplementedError("split_parameters")


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz  [Definition].

    For every parameter p of every group, with the values its group has at that moment:

    B, update = momentum_nesterov(B, grad)
    p <- p (1 - lr weight_decay) - lr shape_scale(p) newton_schulz(update as a matrix)

    A kernel is a matrix (o, i kh kw) while it is orthogonalised. Weight decay acts before the
    update, with lr itself, and never on the buffer.

    The groups have the keys lr, momentum, nesterov, ns_steps, weight_decay and scale, a mode of
    shape_scale; each group may have its own. The state of a parameter is `momentum_buffer`, like
    the parameter, zero before its first gradient. Parameters may be non-contiguous views.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        scale: str = "original",
    ) -> None:
        """Tensors, or groups of them, as every optimiser of torch takes them.

        Raises ValueError as add_param_group does.
        """
        # TODO: hand torch.optim.Optimizer the parameters and a dict of the defaults.
        raise NotImplementedError("Muon.__init__")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which takes the defaults where it says nothing. The constructor adds its
        own through here as well.

        Raises ValueError, and does not add the group: lr < 0 ("lr"), momentum outside [0, 1)
        ("momentum"), ns_steps < 1 ("ns_steps"), weight_decay < 0 ("weight_decay"), another scale
        than shape_scale knows (names it), a parameter of fewer than two axes (names its shape).
        """
        # TODO: let torch complete the group, check it, and take a bad one out again.
        raise NotImplementedError("Muon.add_param_group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns.

        closure: called once, before anything else and with gradients enabled.
        A parameter whose grad is None is left alone, decay included, and gets no state.
        No grad is changed.

        Raises ValueError: a gradient that is not dense ("sparse").
        """
        # TODO: the closure, then for every parameter momentum, newton_schulz, decay and step.
        raise NotImplementedError("Muon.step")


def newton_schulz_flops(m: int, n: int, *, steps: int = 5) -> int:
    """Operations of newton_schulz on an m x n matrix  [Runtime analysis].

    Each step takes the products (r, k) @ (k, r), (r, r) @ (r, r) and (r, r) @ (r, k). One of
    (p, q) @ (q, s) counts 2 p q s, a multiplication and an addition each; the rest is not counted.
    """
    # TODO: add up the three products.
    raise NotImplementedError("newton_schulz_flops")


def overhead(model_dim: int, tokens_per_batch: int, *, steps: int = 5) -> float:
    """The share of a training step that newton_schulz adds, at most  [Runtime analysis].

    T m / B: for an m x n matrix, m <= n, at most 6 T m^2 n operations against the 6 m n B of the
    forward and backward passes.
    """
    # TODO: one line.
    raise NotImplementedError("overhead")


def _check(group: dict[str, Any]) -> None:
    """Refuse a group that cannot be trained (given)."""
    if not group["lr"] >= 0:
        raise ValueError(f"lr must not be negative, got {group['lr']}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if not group["ns_steps"] >= 1:
        raise ValueError(f"ns_steps must be at least 1, got {group['ns_steps']}")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"weight_decay must not be negative, got {group['weight_decay']}")
    for p in group["params"]:
        shape_scale(tuple(p.shape), mode=group["scale"])


class ByteLM(nn.Module):
    """The next byte from the eight before it (given): tokens (b, 8) -> logits (b, 128).

    An embedding, a ReLU layer, three residual ReLU layers and a head: 84,608 parameters.
    generator: draws the initial weights.
    """

    def __init__(self, generator: torch.Generator, *, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 16)
        self.hidden = nn.ModuleList(nn.Linear(i, width) for i in (128, width, width, width))
        self.head = nn.Linear(width, 128)
        for p in self.parameters():
            bound = p.shape[-1] ** -0.5
            nn.init.uniform_(p, -bound, bound, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).flatten(1)  # (b, 8 * 16)
        x = F.relu(self.hidden[0](x))
        for layer in self.hidden[1:]:
            x = x + F.relu(layer(x))
        return self.head(x)
