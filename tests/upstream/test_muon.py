"""The oracle of muon against torch.optim.Muon and SGD, torch's counter of operations, and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import polar
from torch.optim import _muon
from torch.utils.flop_counter import FlopCounterMode

from reference.optimization import muon as oracle

# warnings of the libraries are theirs
pytestmark = pytest.mark.filterwarnings("ignore")

SEEDS = [0, 1, 2]
SHAPES = [(4, 4), (3, 8), (9, 2), (1, 5), (6, 1), (16, 12)]
# torch cuts the norm off at eps where the definition adds eps: gradients so large that it is lost
LARGE = 1e10


def numbers(*shape, seed):
    """Standard normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_is_that_of_torch(seed, shape, agrees, f64):
    """torch's products of matrices and our polynomial of singular values give the same, for several
    numbers of steps and two sets of coefficients.
    """
    G = numbers(*shape, seed=seed)
    for steps in (1, 2, 5, 8):
        for coeffs in (oracle.COEFFS, (1.875, -1.25, 0.375)):
            with f64():
                # in place it divides what it has been given, which a cast would have copied
                theirs = _muon._zeropower_via_newtonschulz(G.clone(), coeffs, steps, 1e-7)
            ours = oracle.newton_schulz(G.numpy(), steps=steps, coeffs=coeffs, eps=0.0)
            agrees(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_four_steps_are_those_of_torch(seed, nesterov, scale, agrees, f64, monkeypatch):
    """torch.optim.Muon with momentum, decay, both rules for the rate and a changing one."""
    whole = _muon._zeropower_via_newtonschulz
    # it divides its input in place, which without a cast is the buffer
    monkeypatch.setattr(
        _muon, "_zeropower_via_newtonschulz", lambda grad, *rest: whole(grad.clone(), *rest)
    )
    shapes = [(3, 5), (6, 2), (4, 4)]
    values = [numbers(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    grads = [
        [LARGE * numbers(*shape, seed=9 * seed + 3 * step + i) for i, shape in enumerate(shapes)]
        for step in range(4)
    ]
    grads[0][1] = None
    rates = [[0.5], [0.25], [0.125], [0.5]]
    settings = {"momentum": 0.75, "nesterov": nesterov, "ns_steps": 4, "weight_decay": 0.25}
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    with f64():
        optimiser = torch.optim.Muon(parameters, lr=1.0, adjust_lr_fn=scale, **settings)
        for row, (rate,) in zip(grads, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate
            for p, grad in zip(parameters, row, strict=True):
                p.grad = None if grad is None else grad.clone()
            optimiser.step()
    ours = oracle.train(
        [value.numpy() for value in values],
        [[None if grad is None else grad.numpy() for grad in row] for row in grads],
        [{"params": [0, 1, 2]}],
        rates=rates,
        scale=scale,
        **settings,
    )
    for value, buffer, p in zip(ours["values"], ours["buffers"], parameters, strict=True):
        agrees(value, p)
        agrees(buffer, optimiser.state[p]["momentum_buffer"])


@pytest.mark.parametrize("shape", [*SHAPES, (4096, 1024), (768, 3072)])
def test_scales_are_those_of_torch(shape, agrees):
    """Both rules of torch.optim.Muon, for matrices."""
    for mode in ("original", "match_rms_adamw"):
        theirs = _muon._adjust_lr(1.0, mode, torch.Size(shape))
        agrees(np.float64(oracle.shape_scale(shape, mode=mode)), np.float64(theirs))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_that_of_torch_s_sgd(seed, nesterov, agrees):
    """torch.optim.SGD, whose buffer is a sum as in the post, moves by the update over 1 - beta."""
    beta, p = 0.75, torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimiser = torch.optim.SGD([p], lr=1.0, momentum=beta, nesterov=nesterov)
    buf = np.zeros((3, 4))
    for step in range(4):
        grad = numbers(3, 4, seed=10 * seed + step)
        before = p.detach().clone()
        p.grad = grad.clone()
        optimiser.step()
        buf, update = oracle.momentum_nesterov(buf, grad.numpy(), beta=beta, nesterov=nesterov)
        agrees(update / (1 - beta), before - p.detach())
        agrees(buf / (1 - beta), optimiser.state[p]["momentum_buffer"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_semi_orthogonal_matrix_is_scipy_s_polar_factor(seed, shape, agrees):
    """scipy.linalg.polar of a matrix of full rank."""
    G = numbers(*shape, seed=seed).numpy()
    agrees(oracle.orthogonalize_svd(G), polar(G)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_counted_as_torch_counts_them(shape, agrees):
    """FlopCounterMode over torch's own iteration."""
    for steps in (1, 5):
        with FlopCounterMode(display=False) as counter:
            _muon._zeropower_via_newtonschulz(torch.ones(shape), oracle.COEFFS, steps, 1e-7)
        ours = oracle.newton_schulz_flops(*shape, steps=steps)
        agrees(np.float64(ours), np.float64(counter.get_total_flops()))
