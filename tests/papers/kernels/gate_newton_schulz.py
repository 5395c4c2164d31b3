"""What the gate measures of kernels/newton_schulz: the iteration, which is bound by its products,
and the symmetric product by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperlings.lanes.contest import Contest, Inputs

COEFFS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
STEPS = 5


def gradients(
    generator: torch.Generator,
    device: torch.device,
    *shape: int,
    scale: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor]:
    """A matrix, or a batch, of normal numbers."""
    G = torch.empty(shape, dtype=dtype, device=device)
    return (G.normal_(0.0, scale, generator=generator),)


def of(*shape: int, **options: Any) -> Inputs:
    """Inputs of one shape."""
    return lambda generator, device: gradients(generator, device, *shape, **options)


def rank_one(generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
    """u v^T."""
    (u,), (v,) = gradients(generator, device, 500, 1), gradients(generator, device, 1, 700)
    return (u * v,)


def dominated(generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
    """One singular value far above all others."""
    (G,), (outlier,) = gradients(generator, device, 500, 700), rank_one(generator, device)
    return (G + 30 * outlier,)


def with_zeros(generator: torch.Generator, device: torch.device) -> tuple[Tensor]:
    """Every third row is zero."""
    (G,) = gradients(generator, device, 500, 700)
    G[::3] = 0
    return (G,)


def truth(G: Tensor, steps: int = STEPS) -> Tensor:
    """In float64."""
    return iterate(G.double(), torch.float64, steps)


def eager(G: Tensor, steps: int = STEPS) -> Tensor:
    """In bfloat16, after a norm in float32."""
    return iterate(G.float(), torch.bfloat16, steps)


def iterate(X: Tensor, dtype: torch.dtype, steps: int) -> Tensor:
    """The loop of products that everybody writes."""
    a, b, c = COEFFS
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    X = (X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + EPS)).to(dtype)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


def muon(G: Tensor, steps: int = STEPS) -> Tensor:
    """The function inside torch.optim.Muon."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    return _zeropower_via_newtonschulz(G, COEFFS, steps, EPS)


def flops(batch: int, r: int, k: int) -> int:
    """What symmetry leaves to be done: half of two products of three."""
    return STEPS * batch * (r * r * k + r**3 + 2 * r * r * k)


FAMILIES = {
    "1 x 1": of(1, 1),
    "ragged": of(17, 99),
    "tall": of(3, 257, 65),
    "float32": of(200, 300, dtype=torch.float32),
    "tiny": of(200, 300, scale=1e-6),
    "huge": of(200, 300, scale=1e12),
    "rank one": rank_one,
    "dominated": dominated,
    "zeros": with_zeros,
}

CONTESTS = [
    Contest(
        name="square",
        task="newton_schulz",
        inputs=of(4096, 4096),
        truth=truth,
        eager=eager,
        peers={"torch.optim.Muon": muon},
        families=FAMILIES,
        bytes=4 * 4096**2,
        flops=flops(1, 4096, 4096),
        roof="matmul",
        torch_may=("linalg_vector_norm",),
    ),
    Contest(
        name="oblong",
        task="newton_schulz",
        inputs=of(11008, 4096),
        truth=truth,
        eager=eager,
        peers={"torch.optim.Muon": muon},
        bytes=4 * 4096 * 11008,
        flops=flops(1, 4096, 11008),
        roof="matmul",
        torch_may=("linalg_vector_norm",),
    ),
    Contest(
        name="layers",
        task="newton_schulz",
        inputs=of(12, 768, 3072),
        truth=truth,
        eager=eager,
        bytes=4 * 12 * 768 * 3072,
        flops=flops(12, 768, 3072),
        roof="matmul",
        torch_may=("linalg_vector_norm",),
    ),
    Contest(
        name="xxt",
        task="xxt",
        inputs=of(4, 4096, 4096),
        truth=lambda X: X.double() @ X.double().mT,
        eager=lambda X: X @ X.mT,
        families={"ragged": of(3, 300, 77), "one row": of(2, 1, 5000), "tall": of(1, 513, 9)},
        bytes=4 * 4 * 4096**2,
        flops=4 * 4096**3,
        roof="matmul",
    ),
]
