"""The Transformer token by token: a hidden key is taken out before anything is computed.

arXiv:1706.03762. Attention is math.fsum over Python floats; layers run over a state_dict of arrays.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]


def scaled_dot_product_attention(
    q: Array, k: Array, v: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """q (..., Tq, dk), k (..., Tk, dk), v (..., Tk, dv) -> (..., Tq, dv), (..., Tq, Tk)  [Eq. 1]"""
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    shape = (*lead, q.shape[-2], k.shape[-2])
    seen = np.broadcast_to(True if mask is None else mask, shape)
    q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    out, weights = np.zeros((*lead, q.shape[-2], v.shape[-1])), np.zeros(shape)
    for at in np.ndindex(*lead):
        for i in range(q.shape[-2]):
            keys = [j for j in range(k.shape[-2]) if seen[at][i, j]]
            row = _weights(q[at][i].tolist(), [k[at][j].tolist() for j in keys])
            for j, weight in zip(keys, row, strict=True):
                weights[at][i, j] = weight
            for f in range(v.shape[-1]):
                terms = (w * float(v[at][j, f]) for j, w in zip(keys, row, strict=True))
                out[at][i, f] = math.fsum(terms)
    return out, weights


def _weights(query: list[float], keys: list[list[float]]) -> list[float]:
    """What one query gives to each of the keys it sees."""
    root = math.sqrt(len(query))
    scores = [math.fsum(a * b for a, b in zip(query, key, strict=True)) / root for key in keys]
    powers = [math.exp(score - max(scores)) for score in scores]
    total = math.fsum(powers)
    return [power / total for power in powers]


def causal_mask(t: int) -> Array:
    """t -> (t, t)  [Sec. 3.2.3]"""
    return np.array([[key <= query for key in range(t)] for query in range(t)])


def decoder_mask(target: Array, pad_id: int) -> Array:
    """target (B, T) -> (B, 1, T, T)"""
    return np.array(
        [
            [[[j <= i and row[j] != pad_id for j in range(len(row))] for i in range(len(row))]]
            for row in target.tolist()
        ]
    )


def multi_head_attention(
    x_q: Array,
    x_kv: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    w_o: Array,
    *,
    n_heads: int,
    mask: Array | None = None,
) -> Array:
    """x_q (..., Tq, D), x_kv (..., Tk, D) -> (..., Tq, D), a head at a time  [Sec. 3.2.2]"""
    width = x_q.shape[-1] // n_heads
    lead = np.broadcast_shapes(x_q.shape[:-2], x_kv.shape[:-2])
    shape = (*lead, n_heads, x_q.shape[-2], x_kv.shape[-2])
    seen = np.broadcast_to(True if mask is None else mask, shape)
    out = np.zeros((*lead, x_q.shape[-2], w_o.shape[1]))
    for h in range(n_heads):
        own = slice(h * width, (h + 1) * width)
        q, k, v = x_q @ w_q[:, own], x_kv @ w_k[:, own], x_kv @ w_v[:, own]
        out += scaled_dot_product_attention(q, k, v, seen[..., h, :, :])[0] @ w_o[own]
    return out


def sinusoidal_positions(n: int, d_model: int, *, base: float = 10000.0) -> Array:
    """n, d_model -> (n, d_model): imaginary and real part of exp(j p w)  [Sec. 3.5]"""
    out = np.zeros((n, d_model))
    for p in range(n):
        for i in range(d_model // 2):
            turn = cmath.exp(1j * p / base ** (2 * i / d_model))
            out[p, 2 * i], out[p, 2 * i + 1] = turn.imag, turn.real
    return out


def rotation(k: int, d_model: int, *, base: float = 10000.0) -> Array:
    """The (d_model, d_model) matrix R with PE[p + k] = R PE[p] for every p."""
    out = np.zeros((d_model, d_model))
    for i in range(0, d_model, 2):
        angle = k / base ** (i / d_model)
        out[i : i + 2, i : i + 2] = [
            [math.cos(angle), math.sin(angle)],
            [-math.sin(angle), math.cos(angle)],
        ]
    return out


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """(..., D) -> (..., D): mean 0 and variance 1, then weight and bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def encoder_layer(state: State, x: Array, mask: Array | None = None, *, n_heads: int) -> Array:
    """x (B, T, D) -> (B, T, D), a token at a time  [Sec. 3.1]"""
    seen = _seen(mask, x.shape[0], n_heads, x.shape[1], x.shape[1])
    out = np.zeros(x.shape)
    for b, i in np.ndindex(*x.shape[:2]):
        y = _attend(state, "self_attention", x[b, i], x[b], seen[b, :, i])
        y = _norm(state, 1, x[b, i] + y)
        out[b, i] = _norm(state, 2, y + _feed_forward(state, y))
    return out


def decoder_layer(
    state: State,
    x: Array,
    memory: Array,
    self_mask: Array | None = None,
    cross_mask: Array | None = None,
    *,
    n_heads: int,
) -> Array:
    """x (B, T, D), memory (B, S, D) -> (B, T, D), a token at a time  [Sec. 3.1]"""
    own = _seen(self_mask, x.shape[0], n_heads, x.shape[1], x.shape[1])
    cross = _seen(cross_mask, x.shape[0], n_heads, x.shape[1], memory.shape[1])
    out = np.zeros(x.shape)
    for b, i in np.ndindex(*x.shape[:2]):
        y = _norm(state, 1, x[b, i] + _attend(state, "self_attention", x[b, i], x[b], own[b, :, i]))
        y = _norm(state, 2, y + _attend(state, "cross_attention", y, memory[b], cross[b, :, i]))
        out[b, i] = _norm(state, 3, y + _feed_forward(state, y))
    return out


def embed(state: State, tokens: Array, *, positions: bool = True) -> Array:
    """tokens (B, T) -> (B, T, D)  [Sec. 3.4]"""
    table = state["embedding"]
    width = table.shape[1]
    x = np.array([[math.sqrt(width) * table[token] for token in row] for row in tokens.tolist()])
    return x + sinusoidal_positions(tokens.shape[1], width) if positions else x


def transformer(
    state: State,
    src: Array,
    tgt_in: Array,
    *,
    n_heads: int,
    pad_id: int,
    positions: bool = True,
) -> Array:
    """src (B, S), tgt_in (B, T) -> logits (B, T, V), each source without its padding."""
    x, memories = embed(state, tgt_in, positions=positions), []
    for b in range(len(src)):
        memories.append(_memory(state, src[b], n_heads, pad_id, positions))
    for i in range(_layers(state, "decoder")):
        own = _part(state, f"decoder.{i}.")
        mask = decoder_mask(tgt_in, pad_id)
        x = np.concatenate(
            [
                decoder_layer(own, x[b : b + 1], memory, mask[b : b + 1], n_heads=n_heads)
                for b, memory in enumerate(memories)
            ]
        )
    return x @ state["embedding"].T


def cross_attention(state: State, src: Array, tgt_in: Array, *, n_heads: int, pad_id: int) -> Array:
    """Weights (n_layers, n_heads, T, S) from tgt_in (T,) to src (S,), which has no padding."""
    memory = _memory(state, src, n_heads, pad_id, True)
    x, maps = embed(state, tgt_in[None]), []
    for i in range(_layers(state, "decoder")):
        own = _part(state, f"decoder.{i}.")
        mask = decoder_mask(tgt_in[None], pad_id)
        seen = _seen(mask, 1, n_heads, len(tgt_in), len(tgt_in))[0]
        looks = [_attend(own, "self_attention", y, x[0], seen[:, t]) for t, y in enumerate(x[0])]
        y = _norm(own, 1, x[0] + np.array(looks))
        q, k = y @ own["cross_attention.w_q"], memory[0] @ own["cross_attention.w_k"]
        heads = [np.stack(np.split(z, n_heads, axis=-1)) for z in (q, k, k)]
        maps.append(scaled_dot_product_attention(*heads)[1])
        x = decoder_layer(own, x, memory, mask, n_heads=n_heads)
    return np.stack(maps)


def parameter_count(vocab: int, d_model: int, d_ff: int, n_layers: int) -> int:
    """All weights: one embedding, four matrices an attention, no biases there."""
    feed_forward = 2 * d_model * d_ff + d_ff + d_model
    encoder = 4 * d_model**2 + feed_forward + 2 * 2 * d_model
    decoder = 8 * d_model**2 + feed_forward + 3 * 2 * d_model
    return vocab * d_model + n_layers * (encoder + decoder)


def label_smoothed_loss(logits: Array, target: Array, *, eps: float = 0.1, pad_id: int) -> float:
    """logits (..., V), target (...): the mean of KL(q || p) + H(q)  [Sec. 5.4]"""
    losses = []
    for at in np.ndindex(*target.shape):
        if target[at] == pad_id:
            continue
        row = logits[at].tolist()
        q = smoothed(int(target[at]), len(row), eps)
        log_total = max(row) + math.log(math.fsum(math.exp(x - max(row)) for x in row))
        divergence = math.fsum(
            a * (math.log(a) - (x - log_total)) for a, x in zip(q, row, strict=True) if a
        )
        losses.append(divergence + entropy(q))
    return math.fsum(losses) / len(losses)


def loss_gradient(logits: Array, target: Array, *, eps: float = 0.1, pad_id: int) -> Array:
    """The derivative of the loss by the logits, (..., V): (p - q) / n, and 0 at padding."""
    out = np.zeros(logits.shape)
    for at in np.ndindex(*target.shape):
        if target[at] != pad_id:
            powers = np.exp(logits[at] - logits[at].max())
            out[at] = powers / powers.sum() - smoothed(int(target[at]), logits.shape[-1], eps)
    return out / np.count_nonzero(target != pad_id)


def smoothed(target: int, vocab: int, eps: float) -> list[float]:
    """The distribution q to learn: (1 - eps) onehot + eps / V."""
    return [eps / vocab + (1 - eps) * (v == target) for v in range(vocab)]


def entropy(q: list[float]) -> float:
    """H(q) in nats."""
    return -math.fsum(a * math.log(a) for a in q if a)


def noam_lr(step: int, d_model: int, *, warmup: int = 4000) -> float:
    """Linear up to (d_model warmup)^-0.5 at step = warmup, then falling like step^-0.5  [Eq. 3]"""
    peak = 1 / math.sqrt(d_model * warmup)
    return peak * step / warmup if step <= warmup else peak * math.sqrt(warmup / step)


def _memory(state: State, src: Array, n_heads: int, pad_id: int, positions: bool) -> Array:
    """The encoder's output for one source (S,): (1, S without padding, D), places as they were."""
    x = embed(state, src[None], positions=positions)[:, src != pad_id]
    for i in range(_layers(state, "encoder")):
        x = encoder_layer(_part(state, f"encoder.{i}."), x, n_heads=n_heads)
    return x


def _attend(state: State, name: str, query: Array, tokens: Array, seen: Array) -> Array:
    """Attention of one token (D,) to the tokens (T, D) that each of its heads sees, seen (h, T)."""
    matrices = [state[f"{name}.{w}"] for w in ("w_q", "w_k", "w_v", "w_o")]
    width = len(query) // len(seen)
    out = np.zeros(len(query))
    for h, visible in enumerate(seen):
        own = slice(h * width, (h + 1) * width)
        kept = tokens[visible]
        if len(kept):
            w_q, w_k, w_v = (w[:, own] for w in matrices[:3])
            row = _weights((query @ w_q).tolist(), (kept @ w_k).tolist())
            out += np.array(row) @ (kept @ w_v) @ matrices[3][own]
    return out


def _feed_forward(state: State, x: Array) -> Array:
    return np.maximum(0, x @ state["w_1"] + state["b_1"]) @ state["w_2"] + state["b_2"]


def _norm(state: State, number: int, x: Array) -> Array:
    return layer_norm(x, state[f"norm_{number}.weight"], state[f"norm_{number}.bias"])


def _seen(mask: Array | None, *shape: int) -> Array:
    return np.broadcast_to(True if mask is None else mask, shape)


def _part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}


def _layers(state: State, stack: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{stack}.")})
