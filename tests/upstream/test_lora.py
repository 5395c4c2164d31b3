"""The oracle of lora against peft, scipy, torch's autograd and torch's Adam."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from reference.compression import lora as oracle

# warnings of the libraries are theirs
pytestmark = pytest.mark.filterwarnings("ignore")

SEEDS = [0, 1, 2]
SIZES = [(5, 4, 2), (3, 7, 3), (6, 6, 1)]  # out, in, r


def numbers(*shape, seed):
    """Standard normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Block(nn.Module):
    """A module whose layers have names that end alike."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 8), nn.Linear(6, 8)
        self.freq_proj, self.out = nn.Linear(8, 6, bias=False), nn.Linear(6, 6)

    def forward(self, x):
        return self.out(self.freq_proj(torch.tanh(self.q_proj(x)) * self.v_proj(x)))


class Model(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def with_peft(seed, **config):
    """A model in float64 under peft, every adapter random, in eval mode."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(init_lora_weights=False, use_rslora=False, lora_dropout=0.3, **config)
    return get_peft_model(Model().double(), config).double().eval()


def parts_of(layer, adapter="default"):
    """W0, A, B, alpha and bias of a layer of peft."""
    base = layer.base_layer
    return {
        "W0": base.weight.detach().numpy().copy(),
        "A": layer.lora_A[adapter].weight.detach().numpy().copy(),
        "B": layer.lora_B[adapter].weight.detach().numpy().copy(),
        "alpha": layer.lora_alpha[adapter],
        "bias": None if base.bias is None else base.bias.detach().numpy().copy(),
    }


def layers_of(model):
    """The adapted layers of a peft model, by name within the base model."""
    from peft.tuners.lora import Linear

    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_answer_as_those_of_peft(seed, agrees):
    """Eq. 3 with ranks and alphas of their own for some layers equals peft's LoraLayer."""
    model = with_peft(
        seed,
        r=2,
        lora_alpha=7,
        target_modules=["q_proj", "v_proj", "freq_proj"],
        rank_pattern={"v_proj": 3},
        alpha_pattern={"freq_proj": 5},
    )
    found = layers_of(model)
    assert len(found) == 6
    for i, (name, layer) in enumerate(found.items()):
        parts = parts_of(layer)
        assert len(parts["A"]) == (3 if name.endswith("v_proj") else 2)
        assert parts["alpha"] == (5 if name.endswith("freq_proj") else 7)
        x = numbers(3, 2, parts["W0"].shape[1], seed=10 * seed + i)
        agrees(oracle.lora_forward(x.numpy(), **parts), layer(x))


@pytest.mark.parametrize("seed", SEEDS)
def test_merged_weights_are_those_of_peft(seed, agrees):
    """merge_and_unload leaves W0 + (alpha / r) B A; unmerging after a merge leaves W0."""
    model = with_peft(seed, r=3, lora_alpha=8, target_modules=["q_proj", "out"])
    parts = {name: parts_of(layer) for name, layer in layers_of(model).items()}
    for wanted in parts.values():
        wanted.pop("bias")
    model.merge_adapter()
    for name, layer in layers_of(model).items():
        W0, A, B, alpha = parts[name].values()
        agrees(oracle.merge(W0, A, B, alpha=alpha), layer.base_layer.weight)
        W = layer.base_layer.weight.detach().numpy()
        agrees(oracle.unmerge(W, A, B, alpha=alpha), W0)
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    for name, wanted in parts.items():
        agrees(oracle.merge(**wanted), plain.get_parameter(f"{name}.weight"))


@pytest.mark.parametrize("seed", SEEDS)
def test_swapping_is_merging_another_adapter_of_peft(seed, agrees):
    """With two adapters of different rank, taking one out and the other in is swap."""
    from peft import LoraConfig

    model = with_peft(seed, r=3, lora_alpha=8, target_modules=["v_proj"])
    other = LoraConfig(r=2, lora_alpha=5, target_modules=["v_proj"], init_lora_weights=False)
    model.add_adapter("other", other)
    model.double()
    kept = {}
    for name, layer in layers_of(model).items():
        old, new = parts_of(layer), parts_of(layer, "other")
        kept[name] = [tuple(p[key] for key in ("A", "B", "alpha")) for p in (old, new)]
    model.merge_adapter(["default"])
    before = {n: p.base_layer.weight.detach().numpy().copy() for n, p in layers_of(model).items()}
    model.unmerge_adapter()
    model.merge_adapter(["other"])
    for name, layer in layers_of(model).items():
        agrees(oracle.swap(before[name], *kept[name]), layer.base_layer.weight)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_batches_are_those_of_peft(seed, agrees):
    """Each row of a batch under its own adapter, or none, equals peft's adapter_names."""
    from peft import LoraConfig

    model = with_peft(seed, r=2, lora_alpha=5, target_modules=["q_proj"])
    other = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("other", other)
    model.double().eval()
    layer = layers_of(model)["blocks.1.q_proj"]
    first, second = parts_of(layer), parts_of(layer, "other")
    names = ["other", "__base__", "default", "other", "default"]
    ids = np.array([{"default": 0, "other": 1, "__base__": -1}[name] for name in names])
    x = numbers(5, 3, 6, seed=seed + 40)
    As, Bs = (np.stack([first[key], second[key]]) for key in ("A", "B"))
    ours = oracle.batched_lora(x.numpy(), first["W0"], As, Bs, ids, alpha=5.0)
    agrees(ours + first["bias"], layer(x, adapter_names=names))


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["proj"], ["1.q_proj", "out"], ["blocks.0.v_proj", "head"]]
)
def test_targets_name_the_layers_that_peft_adapts(targets, agrees):
    """A target is the end of a dotted name in whole words; and |Theta| is peft's own count."""
    from peft import LoraConfig, get_peft_model

    linears = {n: m for n, m in Model().named_modules() if isinstance(m, nn.Linear)}
    ours = oracle.named(linears, targets)
    config = LoraConfig(r=3, target_modules=targets)
    if not ours:
        with pytest.raises(ValueError, match="not found in the base model"):
            get_peft_model(Model(), config)
        return
    model = get_peft_model(Model(), config)
    assert sorted(layers_of(model)) == ours
    trainable, _ = model.get_nb_trainable_parameters()
    shapes = [tuple(linears[name].weight.shape) for name in ours]
    agrees(np.float64(oracle.lora_param_count(shapes, 3)), np.float64(trainable))


@pytest.mark.parametrize(("rows", "columns", "rank"), SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradients_are_those_of_autograd(rows, columns, rank, seed, agrees):
    """dx, dA and dB equal what autograd finds through two nn.functional.linear."""
    x, dy = numbers(2, 3, columns, seed=seed), numbers(2, 3, rows, seed=seed + 1)
    W0 = numbers(rows, columns, seed=seed + 2)
    A, B = numbers(rank, columns, seed=seed + 3), numbers(rows, rank, seed=seed + 4)
    keep = (numbers(2, 3, columns, seed=seed + 5) > 0).double() * 2
    inputs = [t.requires_grad_(True) for t in (x, A, B)]
    linear = nn.functional.linear
    y = linear(x, W0) + 5 / rank * linear(linear(x * keep, A), B)
    theirs = torch.autograd.grad(y, inputs, dy)
    arrays = [t.detach().numpy() for t in (dy, x, W0, A, B)]
    ours = oracle.lora_backward(*arrays, alpha=5.0, keep=keep.numpy())
    agrees(oracle.lora_forward(*arrays[1:], alpha=5.0, keep=keep.numpy()), y)
    for a, b in zip(ours, theirs, strict=True):
        agrees(a, b)


@pytest.mark.parametrize("shape", [(4, 9, 6), (3, 5, 8), (7, 7, 5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_similarity_is_the_mean_of_squared_cosines(shape, seed, agrees):
    """phi is the mean of cos^2 of scipy's principal angles between the leading directions."""
    r1, n, r2 = shape
    A1, A2 = numbers(r1, n, seed=seed).numpy(), numbers(r2, n, seed=seed + 9).numpy()
    U1, U2 = (scipy.linalg.svd(A)[2].T for A in (A1, A2))
    for i in range(1, min(r1, n) + 1):
        for j in range(1, min(r2, n) + 1):
            angles = scipy.linalg.subspace_angles(U1[:, :i], U2[:, :j])
            ours = oracle.subspace_similarity(A1, A2, i, j)
            # eigenvectors of A^T A are as exact as its gaps are wide
            agrees(np.float64(ours), np.float64(np.mean(np.cos(angles) ** 2)), 1e-10)


@pytest.mark.parametrize(("rows", "columns", "rank"), SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_amplification_is_that_of_singular_vectors(rows, columns, rank, seed, agrees):
    """|dW| / |U^T W V| with the singular vectors of LAPACK, for an update of rank r."""
    A, B = numbers(rank, columns, seed=seed).numpy(), numbers(rows, rank, seed=seed + 1).numpy()
    dW, W = oracle.update(A, B, alpha=3.0), numbers(rows, columns, seed=seed + 2).numpy()
    U, _, Vh = scipy.linalg.svd(dW)
    norm = scipy.linalg.norm(U[:, :rank].T @ W @ Vh[:rank].T)
    ours = oracle.amplification(dW, W, rank)
    agrees(np.array(ours), np.array([scipy.linalg.norm(dW) / norm, norm]), 1e-10)


@pytest.mark.parametrize("lr", [0.1, 0.003])
@pytest.mark.parametrize("seed", SEEDS)
def test_training_is_that_of_torch(lr, seed, agrees):
    """Ten steps of torch.optim.Adam down F.cross_entropy are the oracle's."""
    W, bias, x = numbers(3, 4, seed=seed), numbers(3, seed=seed + 1), numbers(9, 4, seed=seed + 2)
    y = torch.arange(9) % 3
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randint(9, (5,), generator=generator) for _ in range(10)]
    weight = W.clone().requires_grad_(True)
    optimizer, losses = torch.optim.Adam([weight], lr=lr), []
    for rows in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(x[rows] @ weight.T + bias, y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    arrays = [t.numpy() for t in (W, bias, x, y)]
    ours, own = oracle.finetune(*arrays, [rows.numpy() for rows in batches], lr=lr)
    # Adam divides gradients by their own size, and with them the rounding
    agrees(ours, weight, 1e-10)
    agrees(np.array(own), np.array(losses), 1e-10)
