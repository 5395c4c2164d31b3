"""Attention Is All You Need: a sequence transducer made of attention alone.

*Paper*  Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin (2017),
arXiv:1706.03762. Read section 3 first, then 5.3 and 5.4.

*Why*  A recurrent network passes what it knows along the sequence one token at a time. Here every
token looks at every other one directly, as a weighted mean whose weights are learned scalar
products: any two tokens are one step apart, and a layer is a few matrix products. Order, which
a mean forgets, is added to the inputs as sines and cosines.

*Names*
    Q, K            q, k           (..., Tq, dk), (..., Tk, dk)   queries and keys
    V               v              (..., Tk, dv)   values
    W^Q .. W^O      w_q .. w_o     (D, D)   used as x @ w; the heads' columns lie side by side
    h, d_k          n_heads, dk    heads, and the width D / h of each
    d_model, d_ff   D, F           width of a token, width inside the feed-forward network
    W_1, b_1, W_2, b_2             (D, F), (F,), (F, D), (D,)
    PE              positions      (n, D)
    eps_ls          eps            probability spread evenly over the vocabulary
    mask            boolean; True: this query may see this key. A query that sees none gets zeros.

*Tasks*  scaled_dot_product_attention, causal_mask, decoder_mask, multi_head_attention,
sinusoidal_positions, EncoderLayer, DecoderLayer, Transformer, label_smoothed_loss, noam_lr,
train_step.

*Differs*  The paper leaves open how weights start (here Glorot's uniform, and embeddings of
standard deviation D^-0.5), the epsilon of the layer normalisation (1e-5), and what a query without
keys gets. Its own code also drops attention weights and hidden units; the text does not.

*Limits*  Base model: N = 6, D = 512, F = 2048, h = 8, dropout 0.1, 100k steps on eight GPUs. Here
2 + 2 layers of D = 48 learn to reverse strings of digits on one core.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PAD, BOS, EOS, DIGIT = 0, 1, 2, 3  # the reversal task's tokens: digit d is DIGIT + d
VOCABULARY = DIGIT + 10


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q (..., Tq, dk), k (..., Tk, dk), v (..., Tk, dv) -> (..., Tq, dv), (..., Tq, Tk)  [Eq. 1]

    weights = softmax over the keys of q k^T / sqrt(dk), and out = weights v; returns out, weights.
    mask: bool, broadcastable to (..., Tq, Tk); where it is False the weight is exactly 0, as if
    the key, of any finite size, were not there. A query that sees no key has weights, out and
    gradients 0, never NaN.
    Finite and right for scores up to 1e6 in float64. The answers have the dtype of the inputs,
    float16 too. torch's own scaled_dot_product_attention is not to be used.

    ValueError with both sizes if the widths of q and k, or the lengths of k and v, differ;
    ValueError "mask must be boolean" if it is of another dtype.
    """
    # Task: refuse bad sizes and masks, score every key for every query, turn the scores of the
    # visible keys into weights, and average the values. What is the softmax of a row of -inf?
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"queries have {q.shape[-1]} features, keys {k.shape[-1]}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"there are {k.shape[-2]} keys but {v.shape[-2]} values")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, not {mask.dtype}")
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., Tq, Tk)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        # a row of -inf became 0 / 0: its NaN end here, and those of its gradient in the fill above
        weights = weights.masked_fill(~mask, 0.0)
    return weights @ v, weights


def causal_mask(t: int) -> Tensor:
    """t -> (t, t) bool: query i sees key j iff j <= i  [Sec. 3.2.3]

    ValueError with t if t < 1.
    """
    # Task: a token sees itself and everything before it.
    if t < 1:
        raise ValueError(f"a sequence has at least one token, not {t}")
    return torch.ones(t, t, dtype=torch.bool).tril()


def decoder_mask(target: Tensor, pad_id: int) -> Tensor:
    """target (B, T) int64 -> (B, 1, T, T) bool; the axis of length 1 is for the heads.

    Query i sees key j iff j <= i and target[j] is not pad_id.
    """
    # Task: the causal mask, and the keys that are real tokens.
    real = target != pad_id  # (B, T)
    return causal_mask(target.shape[-1]).to(target.device) & real[:, None, None, :]


def multi_head_attention(
    x_q: Tensor,
    x_kv: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    *,
    n_heads: int,
    mask: Tensor | None = None,
) -> Tensor:
    """x_q (..., Tq, D), x_kv (..., Tk, D), four matrices (D, D) -> (..., Tq, D)  [Sec. 3.2.2]

    With dk = D / n_heads, head h attends with queries x_q W, keys and values x_kv W, where W is
    the columns [h dk, (h+1) dk) of w_q, w_k, w_v. The heads' outputs, concatenated in order, are
    multiplied by w_o. No biases; any number of leading axes.
    mask: bool, broadcastable to (..., n_heads, Tq, Tk).

    ValueError with D and n_heads if n_heads does not divide D.
    """
    # Task: project, split the features into heads, attend in all of them, put them side by side,
    # project.
    width = x_q.shape[-1]
    if width % n_heads:
        raise ValueError(f"{n_heads} heads do not divide the width {width}")

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (n_heads, width // n_heads)).transpose(-3, -2)  # (..., h, T, dk)

    heads, _ = scaled_dot_product_attention(
        split(x_q @ w_q), split(x_kv @ w_k), split(x_kv @ w_v), mask
    )
    return heads.transpose(-3, -2).flatten(-2) @ w_o


def sinusoidal_positions(n: int, d_model: int, *, base: float = 10000.0) -> Tensor:
    """n, d_model -> (n, d_model) float64  [Sec. 3.5]

    PE[p, 2i] = sin(p / base^(2i / d_model)) and PE[p, 2i + 1] = cos(the same angle),
    for p = 0 .. n - 1.

    ValueError with d_model if it is odd.
    """
    # Task: one angle for each position and pair of columns; its sine and its cosine are neighbours.
    if d_model % 2:
        raise ValueError(f"d_model = {d_model} is odd: sines and cosines come in pairs")
    pairs = torch.arange(0, d_model, 2, dtype=torch.float64)  # 2i
    angles = torch.arange(n, dtype=torch.float64)[:, None] * base ** (-pairs / d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def glorot(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    """A (rows, columns) parameter, uniform with variance 2 / (rows + columns)."""
    uniform = torch.rand(rows, columns, generator=generator, device=generator.device)
    return nn.Parameter((2 * uniform - 1) * math.sqrt(6 / (rows + columns)))


class Attention(nn.Module):
    """The matrices of one attention: parameters w_q, w_k, w_v, w_o, each (D, D), in this order."""

    def __init__(self, d_model: int, n_heads: int, generator: torch.Generator):
        super().__init__()
        self.n_heads = n_heads
        self.w_q = glorot(d_model, d_model, generator)
        self.w_k = glorot(d_model, d_model, generator)
        self.w_v = glorot(d_model, d_model, generator)
        self.w_o = glorot(d_model, d_model, generator)

    def forward(self, x_q: Tensor, x_kv: Tensor, mask: Tensor | None) -> Tensor:
        """x_q (B, Tq, D), x_kv (B, Tk, D) -> (B, Tq, D); keys and values come from x_kv."""
        return multi_head_attention(
            x_q, x_kv, self.w_q, self.w_k, self.w_v, self.w_o, n_heads=self.n_heads, mask=mask
        )


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network  [Sec. 3.1, 3.3, 5.4]

    state_dict: self_attention.w_q, .w_k, .w_v, .w_o (D, D); w_1 (D, F), b_1 (F,), w_2 (F, D),
    b_2 (D,); norm_1 and norm_2 .weight, .bias (D,). Drawn in this order, biases 0.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float = 0.1,
        generator: torch.Generator,
    ):
        super().__init__()
        self.self_attention = Attention(d_model, n_heads, generator)
        self.w_1 = glorot(d_model, d_ff, generator)
        self.b_1 = nn.Parameter(torch.zeros_like(self.w_1[0]))
        self.w_2 = glorot(d_ff, d_model, generator)
        self.b_2 = nn.Parameter(torch.zeros_like(self.w_2[0]))
        self.norm_1 = nn.LayerNorm(d_model, device=generator.device)
        self.norm_2 = nn.LayerNorm(d_model, device=generator.device)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask: bool, broadcastable to (B, n_heads, T, T).

        Each of the two sub-layers is post-norm: x <- LayerNorm(x + Dropout(Sublayer(x))), with
        norm_1, then norm_2. The feed-forward network is FFN(x) = max(0, x W1 + b1) W2 + b2
        [Eq. 2]. Dropout is nowhere else.
        """
        # Task: two sub-layers, each of them dropped out, added to its input, and normalised.
        x = self.norm_1(x + self.dropout(self.self_attention(x, x, mask)))
        hidden = torch.relu(x @ self.w_1 + self.b_1)  # (B, T, F)
        return self.norm_2(x + self.dropout(hidden @ self.w_2 + self.b_2))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder, feed-forward network  [Sec. 3.1, 3.3, 5.4]

    state_dict: self_attention.w_q, .w_k, .w_v, .w_o (D, D); cross_attention.* likewise;
    w_1 (D, F), b_1 (F,), w_2 (F, D), b_2 (D,); norm_1, norm_2 and norm_3 .weight, .bias (D,).
    Drawn from the generator in this order, biases 0.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float = 0.1,
        generator: torch.Generator,
    ):
        super().__init__()
        self.self_attention = Attention(d_model, n_heads, generator)
        self.cross_attention = Attention(d_model, n_heads, generator)
        self.w_1 = glorot(d_model, d_ff, generator)
        self.b_1 = nn.Parameter(torch.zeros_like(self.w_1[0]))
        self.w_2 = glorot(d_ff, d_model, generator)
        self.b_2 = nn.Parameter(torch.zeros_like(self.w_2[0]))
        self.norm_1 = nn.LayerNorm(d_model, device=generator.device)
        self.norm_2 = nn.LayerNorm(d_model, device=generator.device)
        self.norm_3 = nn.LayerNorm(d_model, device=generator.device)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D), memory (B, S, D) -> (B, T, D)

        Three post-norm sub-layers, as in the encoder: self-attention under self_mask (bool,
        broadcastable to (B, n_heads, T, T)) with norm_1; attention with queries from x, keys and
        values from memory, under cross_mask (broadcastable to (B, n_heads, T, S)) with norm_2;
        the feed-forward network with norm_3.
        """
        # Task: as in the encoder, with the attention to `memory` between the two sub-layers.
        x = self.norm_1(x + self.dropout(self.self_attention(x, x, self_mask)))
        x = self.norm_2(x + self.dropout(self.cross_attention(x, memory, cross_mask)))
        hidden = torch.relu(x @ self.w_1 + self.b_1)  # (B, T, F)
        return self.norm_3(x + self.dropout(hidden @ self.w_2 + self.b_2))


class Transformer(nn.Module):
    """Encoder, decoder, and one embedding matrix for source, target and output  [Sec. 3.1, 3.4]

    state_dict: embedding (V, D); encoder.{i}.* and decoder.{i}.* for i in 0 .. n_layers - 1, laid
    out as in EncoderLayer and DecoderLayer. Nothing else: no output matrix, no table of positions.
    Attributes that others read: the integers d_model and pad_id.
    """

    def __init__(
        self,
        vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        *,
        pad_id: int,
        dropout: float = 0.1,
        positions: bool = True,
        generator: torch.Generator,
    ):
        """The embedding is drawn first, normal with mean 0 and standard deviation d_model^-0.5.

        Then the encoder's layers are drawn, then the decoder's: n_layers of each, 0 is allowed.
        All comes from the generator, nothing from the global random state. dropout: the rate, in
        [0, 1], of the model and of its layers. positions=False leaves the positions out.
        """
        # Task: the embedding as a parameter, then the layers of both stacks.
        super().__init__()
        self.d_model = d_model
        self.pad_id = pad_id
        self.positions = positions
        normal = torch.randn(vocab, d_model, generator=generator, device=generator.device)
        self.embedding = nn.Parameter(normal * d_model**-0.5)
        sizes = (d_model, n_heads, d_ff)
        self.encoder = nn.ModuleList(
            EncoderLayer(*sizes, dropout=dropout, generator=generator) for _ in range(n_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(*sizes, dropout=dropout, generator=generator) for _ in range(n_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> (B, T, D), dtype of E: Dropout(sqrt(D) E[token] + PE[place])"""
        # Task: look up, scale, add the positions (unless they are left out), drop out.
        x = self.embedding[tokens] * math.sqrt(self.d_model)
        if self.positions:
            x = x + sinusoidal_positions(tokens.shape[-1], self.d_model).to(x)
        return self.dropout(x)

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        """src (B, S), tgt_in (B, T) int64 -> logits (B, T, V)

        The decoder attends to the output of the last encoder layer; logits = h E^T, h being the
        decoder's output. Padding of the source (pad_id) is hidden from the encoder and from the
        decoder's attention to it, the future and padding of the target from its self-attention.
        """
        # Task: encode the source, decode the target, compare with every row of the embedding.
        real = (src != self.pad_id)[:, None, None, :]  # (B, 1, 1, S)
        memory = self.embed(src)
        for layer in self.encoder:
            memory = layer(memory, real)
        x = self.embed(tgt_in)
        visible = decoder_mask(tgt_in, self.pad_id)  # (B, 1, T, T)
        for layer in self.decoder:
            x = layer(x, memory, visible, real)
        return x @ self.embedding.T


def label_smoothed_loss(logits: Tensor, target: Tensor, *, eps: float = 0.1, pad_id: int) -> Tensor:
    """logits (..., V), target (...) int64 in [0, V) -> scalar, dtype of the logits  [Sec. 5.4]

    Mean of -sum_v q_v log p_v over the positions whose target is not pad_id, p = softmax(logits),
    q = (1 - eps) onehot(target) + eps / V: the eps is spread over all V classes, the true one
    included. A padded position has no loss and no gradient, and does not count in the mean.
    Stable for large logits. torch's cross_entropy is not to be used.

    ValueError with eps unless 0 <= eps < 1; ValueError with pad_id if every target is padding.
    """
    # Task: keep the real positions, take log p, and weigh it by q.
    if not 0 <= eps < 1:
        raise ValueError(f"eps = {eps} is not in [0, 1)")
    real = target != pad_id
    if not real.any():
        raise ValueError(f"every target is padding (pad_id = {pad_id})")
    log_p = torch.log_softmax(logits[real], dim=-1)  # (n, V)
    true = log_p.gather(-1, target[real][:, None])[:, 0]
    return -((1 - eps) * true + eps * log_p.mean(dim=-1)).mean()


def noam_lr(step: int, d_model: int, *, warmup: int = 4000) -> float:
    """d_model^-0.5 min(step^-0.5, step warmup^-1.5), a Python float  [Eq. 3]

    step: the first one is 1. ValueError with the step if it is less than 1.
    """
    # Task: up in a straight line, then down like one over the square root.
    if step < 1:
        raise ValueError(f"steps count from 1, not {step}")
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    step: int,
    *,
    warmup: int = 4000,
    eps: float = 0.1,
) -> float:
    """One update of the model; returns the loss before it, a Python float  [Sec. 5.3, 5.4]

    model: called as model(src, tgt_in) -> logits, with the integers model.d_model and model.pad_id;
    its mode, train or eval, is left as it is.
    batch: src (B, S) and tgt (B, T), int64. The model reads tgt without its last token and is to
    say tgt without its first. Before the update the learning rate of every parameter group becomes
    noam_lr(step, d_model, warmup). Gradients left over from before do not count. A parameter of the
    optimizer may be frozen: it stays as it is.
    """
    # Task: set the learning rate, clear the gradients, forward, loss, backward, step.
    src, tgt = batch
    for group in optimizer.param_groups:
        group["lr"] = noam_lr(step, model.d_model, warmup=warmup)
    optimizer.zero_grad()
    logits = model(src, tgt[:, :-1])
    loss = label_smoothed_loss(logits, tgt[:, 1:], eps=eps, pad_id=model.pad_id)
    loss.backward()
    optimizer.step()
    return loss.item()


def adam(model: nn.Module) -> torch.optim.Adam:
    """The paper's optimizer [Sec. 5.3]; train_step sets its learning rate."""
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9)


def reversal_batch(
    count: int, *, low: int = 3, high: int = 8, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` strings of low to high random digits -> src (count, high + 1), tgt (count, high + 2)

    A row of src is digits EOS PAD.., the same row of tgt BOS digits-backwards EOS PAD...
    """
    device = generator.device
    length = torch.randint(low, high + 1, (count, 1), generator=generator, device=device)
    digits = torch.randint(DIGIT, VOCABULARY, (count, high), generator=generator, device=device)
    place = torch.arange(high, device=device)
    backwards = digits.gather(1, (length - 1 - place).clamp_min(0))
    start, end = torch.full_like(length, BOS), torch.full_like(length, PAD)
    rows = [torch.cat([x.where(place < length, PAD), end], 1) for x in (digits, backwards)]
    src, tgt = (row.scatter(1, length, EOS) for row in rows)
    return src, torch.cat([start, tgt], 1)


@torch.no_grad()
def greedy_decode(model: nn.Module, src: Tensor, *, length: int) -> Tensor:
    """src (B, S) -> (B, 1 + length): BOS, then always the likeliest next token; PAD after EOS."""
    tgt = torch.full_like(src[:, :1], BOS)
    for _ in range(length):
        token = model(src, tgt)[:, -1].argmax(dim=-1)
        token = token.masked_fill((tgt == EOS).any(dim=-1), PAD)
        tgt = torch.cat([tgt, token[:, None]], dim=1)
    return tgt
