"""What the gate measures of kernels/flash_attention.

Both passes are bound by their products. Peers are torch's own attentions, each alone: what
scaled_dot_product_attention would choose from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from paperlings.lanes.contest import Contest, Inputs

# batch, heads of queries and of keys, queries, keys, width
Sizes = tuple[int, int, int, int, int, int]
LLAMA: Sizes = (4, 32, 8, 4096, 4096, 128)  # Llama 3 8B
GPT2: Sizes = (64, 16, 16, 1024, 1024, 64)  # the paper's GPT-2 medium


# ---- inputs


def drawn(
    sizes: Sizes,
    generator: torch.Generator,
    device: torch.device,
    scale: float = 1.0,
    spike: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:
    """do, q, k and v; q and k are `scale` times larger, and the first key has a spike."""
    b, h, hkv, nq, nk, d = sizes
    shapes = [(b, h, nq, d), (b, h, nq, d), (b, hkv, nk, d), (b, hkv, nk, d)]
    tensors = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    for x, factor in zip(tensors, (1.0, scale, scale, 1.0), strict=True):
        x.normal_(0.0, factor, generator=generator)
    if spike:
        tensors[1][..., 0], tensors[2][:, :, 0, 0] = 1.0, spike
    return tensors


def forward(sizes: Sizes, **options: Any) -> Inputs:
    return lambda generator, device: tuple(drawn(sizes, generator, device, **options)[1:])


def backward(sizes: Sizes, causal: bool, **options: Any) -> Inputs:
    """do, q, k, v, and the o and lse that belong to them."""

    def inputs(generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        do, q, k, v = drawn(sizes, generator, device, **options)
        fast = device.type == "cuda" and sizes[3] == sizes[4]
        o, lse = flash_fwd(q, k, v, causal=causal) if fast else exact_fwd(q, k, v, causal=causal)
        return do, q, k, v, o.to(q.dtype), lse.float()

    return inputs


# ---- the truth, a head of keys at a time


def heads(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, slice], tuple[int, int]]]:
    """Places in q of the heads that share keys, and of those in k."""
    group = q.shape[1] // k.shape[1]
    for batch in range(q.shape[0]):
        for shared in range(k.shape[1]):
            yield (batch, slice(shared * group, shared * group + group)), (batch, shared)


def scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """(..., nq, d), (..., nk, d) -> (..., nq, nk), -inf for a pair that is not seen."""
    s = q @ k.mT * q.shape[-1] ** -0.5
    nq, nk = s.shape[-2:]
    late = torch.ones(nq, nk, dtype=torch.bool, device=s.device).triu(1 + nk - nq)
    return s.masked_fill(late, -math.inf) if causal else s


def weights(s: Tensor, lse: Tensor) -> Tensor:
    """exp(s - lse), 0 where no key is seen."""
    return torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])


def exact_fwd(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """o and lse in float64."""
    o = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)
    for own, shared in heads(q, k):
        s = scores(q[own].double(), k[shared].double(), causal)
        lse[own] = s.logsumexp(-1)
        o[own] = weights(s, lse[own]) @ v[shared].double()
    return o, lse


def exact_bwd(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *, causal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv in float64: a formula of all six, so the rounding of o is nobody's error."""
    dq, dk, dv = (torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in (q, k, v))
    for own, shared in heads(q, k):
        rows, slope, out = (x[own].double() for x in (q, do, o))
        keys, values = k[shared].double(), v[shared].double()
        p = weights(scores(rows, keys, causal), lse[own].double())
        ds = p * (slope @ values.mT - (slope * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        dq[own] = ds @ keys
        dk[shared] = (ds.mT @ rows).sum(0)
        dv[shared] = (p.mT @ slope).sum(0)
    return dq, dk, dv


# ---- torch, in the dtype of the inputs


def eager_fwd(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = scores(q, keys, causal)
    lse = s.float().logsumexp(-1)
    return weights(s, lse).to(q.dtype) @ values, lse


def eager_bwd(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *, causal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    group, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    p = weights(scores(q, keys, causal), lse).to(q.dtype)
    delta = (do.float() * o.float()).sum(-1, keepdim=True)
    ds = (p * (do @ values.mT - delta)).to(q.dtype)
    dk, dv = ds.mT @ q * scale, p.mT @ do
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    return ds @ keys * scale, dk, dv


# ---- peers


def flash_fwd(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """FlashAttention-2, as torch has it; it takes groups as they are."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]


def flash_bwd(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *, causal: bool = False
) -> tuple[Tensor, ...]:
    none = torch.empty(0, device=q.device)
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        do, q, k, v, o, lse, none, none, q.shape[2], k.shape[2], 0.0, causal, seed, seed
    )


def cudnn_fwd(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal)
    return found[0], found[1]


def cudnn_bwd(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *, causal: bool = False
) -> tuple[Tensor, ...]:
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(do, q, k, v, o, lse[..., None], seed, seed, None, None, None),
        *(q.shape[2], k.shape[2], 0.0, causal),
    )


@functools.cache
def compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), functools.cache(create_block_mask)


def triangle(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def flex_fwd(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """flex_attention, compiled to one Triton kernel."""
    flex, mask = compiled_flex()
    blocks = mask(triangle, None, None, q.shape[2], k.shape[2], q.device) if causal else None
    return flex(q, k, v, block_mask=blocks, enable_gqa=True)


# ---- contests


def flops(sizes: Sizes, causal: bool, products: int) -> int:
    """Of the pairs that are seen; lengths are equal if causal."""
    b, h, _, nq, nk, d = sizes
    pairs = nq * (nq + 1) // 2 if causal else nq * nk
    return 2 * products * b * h * pairs * d


def moved(sizes: Sizes, queries: int, keys: int) -> int:
    """Bytes of so many tensors of the queries' shape and of the keys', and of lse, each once."""
    b, h, hkv, nq, nk, d = sizes
    return 2 * b * d * (queries * h * nq + keys * hkv * nk) + 4 * b * h * nq


SMALL: dict[str, tuple[Sizes, dict[str, Any]]] = {
    "ragged": ((2, 4, 2, 1000, 777, 128), {}),
    "ragged, D = 64": ((2, 6, 3, 65, 1025, 64), {}),
    "one query": ((3, 8, 2, 1, 500, 128), {}),
    "more queries than keys": ((1, 2, 2, 700, 300, 64), {}),
    "large logits": ((1, 4, 1, 512, 512, 128), {"scale": 8.0}),
    "spike": ((1, 4, 4, 300, 300, 64), {"spike": 40.0}),
    "tiny": ((1, 4, 4, 300, 300, 64), {"scale": 1e-3}),
    "float16": ((2, 4, 2, 300, 500, 128), {"dtype": torch.float16}),
}
LARGE: dict[str, tuple[Sizes, dict[str, Any]]] = {"beyond 2^31": ((9, 32, 1, 65536, 16, 128), {})}


def forward_contest(name: str, sizes: Sizes, causal: bool) -> Contest:
    families = SMALL if causal else SMALL | LARGE
    return Contest(
        name=name,
        task="flash_attention_fwd",
        inputs=forward(sizes),
        truth=exact_fwd,
        eager=eager_fwd,
        peers={"sdpa flash": flash_fwd, "sdpa cudnn": cudnn_fwd, "flex_attention": flex_fwd},
        families={what: forward(size, **options) for what, (size, options) in families.items()},
        kwargs={"causal": causal},
        bytes=moved(sizes, 2, 2),
        flops=flops(sizes, causal, 2),
        roof="matmul",
    )


def backward_contest(name: str, sizes: Sizes, causal: bool) -> Contest:
    return Contest(
        name=name,
        task="flash_attention_bwd",
        inputs=backward(sizes, causal),
        truth=exact_bwd,
        eager=eager_bwd,
        peers={"sdpa flash": flash_bwd, "sdpa cudnn": cudnn_bwd},
        families={
            what: backward(size, causal, **options) for what, (size, options) in SMALL.items()
        },
        kwargs={"causal": causal},
        bytes=moved(sizes, 4, 4),
        flops=flops(sizes, causal, 5),
        roof="matmul",
        torch_may=("zeros", "zeros_like", "new_zeros", "zero_"),  # where dq is added up
    )


CONTESTS = [
    forward_contest("forward, D = 128, causal", LLAMA, True),
    forward_contest("forward, D = 64, causal", GPT2, True),
    forward_contest("forward, D = 128", LLAMA, False),
    backward_contest("backward, D = 128, causal", LLAMA, True),
    backward_contest("backward, D = 64, causal", GPT2, True),
]
