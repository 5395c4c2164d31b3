"""LoRA: adapt a network by adding to a frozen weight the product of two thin matrices.

*Paper*  Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen (2021), LoRA: Low-Rank Adaptation of
Large Language Models, arXiv:2106.09685. Read section 4 first, then 7.

*Why*  Fine-tuning moves every weight, so every task costs a copy of the network, and its training
an optimizer state twice as large again. What a task needs to change is simpler than that: a matrix
of low rank. So the network stays as it is, and a matrix W_0 gets an update B A, whose two thin
factors are all that is trained, stored and swapped. Added into W_0 it costs no time at all.

*Names*
    W_0              W0, weight      (out, in)           the pre-trained weight, frozen
    A, B             A, B; lora_A, lora_B    (r, in), (out, r)   the adapter
    Delta W          dW              (out, in)           what training changes: (alpha / r) B A
    r, alpha         r, alpha        rank, and the strength of the update: it is scaled by alpha / r
    x, h             x, y            (..., in), (..., out)   vectors are rows: y = x W^T
    adapter          (A, B, alpha), or a dict of tensors by name
    phi              subspace_similarity   a number in [0, 1]
    U_A^i            the first i right singular vectors of A, those of the largest values
    b, t, K          requests in a batch, tokens in each, adapters to choose from

*Tasks*  init_lora, lora_forward, lora_backward, merge, unmerge, swap, LoRALinear, apply_lora,
lora_state_dict, load_lora, count_trainable, lora_param_count, subspace_similarity, amplification,
finetune, batched_lora.

*Differs*  The paper says only that A starts "random Gaussian"; here its standard deviation is
in^-0.5. Dropout in front of A comes from the authors' code, and so does merging in eval mode.
batched_lora is not in the paper: section 4.2 names its lack as a limitation.

*Limits*  Only nn.Linear is adapted, not convolutions or embeddings; a layer that a model holds
under two names is replaced under the first. Each merge and unmerge rounds the weight once more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_lora(
    in_f: int,
    out_f: int,
    r: int,
    generator: torch.Generator,
    *,
    std: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A new adapter, which changes nothing yet: -> A (r, in_f), B (out_f, r)  [section 4.1]

    A ~ N(0, std^2), from one torch.randn of its shape and dtype;  B = 0, which draws nothing.
    std is in_f^-0.5 where none is given; std = 0 is a zero A. Both have `dtype`, and are on the
    generator's device.

    Raises ValueError: r < 1 or r > min(in_f, out_f) ("rank", r, and the largest one allowed).
    """
    # Task: refuse a rank that is none, then draw A; what must B be for B A to vanish?
    if not 1 <= r <= min(in_f, out_f):
        raise ValueError(f"the rank must be between 1 and {min(in_f, out_f)}, got {r}")
    if std is None:
        std = in_f**-0.5
    A = torch.randn(r, in_f, generator=generator, dtype=dtype, device=generator.device) * std
    return A, torch.zeros(out_f, r, dtype=dtype, device=generator.device)


def lora_forward(
    x: Tensor,
    W0: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    alpha: float,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """x (..., in), W0 (out, in), A (r, in), B (out, r) -> (..., out)  [Eq. 3]

        y = x W0^T + bias + (alpha / r) ((x keep) A^T) B^T

    bias: (out,). keep: a dropout mask of the shape of x whose entries are 0 or 1 / (1 - rate)
    already; it is multiplied into what the branch of A and B reads, and W0 reads x itself.
    Differentiable by everything. No tensor as large as W0 is made: B A is never formed.
    """
    # Task: two branches that are added; in which order are three matrices multiplied cheaply?
    y = F.linear(x, W0, bias)
    branch = x if keep is None else x * keep
    return y + (alpha / len(A)) * (branch @ A.T @ B.T)


def lora_backward(
    dy: Tensor, x: Tensor, W0: Tensor, A: Tensor, B: Tensor, *, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(dy * lora_forward(x, ...)): dy (..., out), x (..., in) -> dx, dA, dB

        dx = dy W0 + s (dy B) A,   dA = s (dy B)^T x,   dB = s dy^T (x A^T),   s = alpha / r

    in which the leading axes of x and dy are one. dx, dA and dB have the shapes of x, A and B.
    W0 gets no gradient: it is frozen, and no tensor of its size is made here either.
    """
    # Task: flatten the leading axes; dy B and x A^T are the two thin products to start from.
    s = alpha / len(A)
    rows, given = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    thin = s * (given @ B)  # (n, r)
    dx = given @ W0 + thin @ A
    return dx.reshape(x.shape), thin.T @ rows, s * (given.T @ (rows @ A.T))


def merge(W0: Tensor, A: Tensor, B: Tensor, *, alpha: float) -> Tensor:
    """W = W0 + (alpha / r) B A, (out, in), a new tensor: no latency is added  [section 4.1]"""
    # Task: one line.
    return W0 + (alpha / len(A)) * (B @ A)


def unmerge(W: Tensor, A: Tensor, B: Tensor, *, alpha: float) -> Tensor:
    """W0 = W - (alpha / r) B A, (out, in), a new tensor: the base again, up to rounding."""
    # Task: one line.
    return W - (alpha / len(A)) * (B @ A)


def swap(W: Tensor, old: tuple[Tensor, Tensor, float], new: tuple[Tensor, Tensor, float]) -> Tensor:
    """A merged weight from one task to another, (out, in), a new tensor  [section 4.1]

    old, new: adapters (A, B, alpha), whose ranks may differ. W0 is not needed for it.
    """
    # Task: take one update back, add the other.
    W0 = unmerge(W, old[0], old[1], alpha=old[2])
    return merge(W0, new[0], new[1], alpha=new[2])


class LoRALinear(nn.Module):
    """An nn.Linear with an adapter, in its place: x (..., in) -> (..., out).

    state_dict: weight (out, in), bias (out,) where the base has one, lora_A (r, in) and
    lora_B (out, r); with r = 0 there are no lora_A and lora_B, and it is the base, frozen.
    Attributes that others read: in_features, out_features; merged, whether weight holds the
    update; train_bias.
    """

    def __init__(
        self,
        base: nn.Linear,
        r: int,
        *,
        alpha: float,
        generator: torch.Generator,
        dropout: float = 0.0,
        train_bias: bool = False,
        auto_merge: bool = False,
    ) -> None:
        """Wrap base, whose parameters are shared, not copied: who changes one changes the other.

        weight is frozen (requires_grad False), and so is bias unless train_bias; lora_A and lora_B,
        of the dtype of weight, start as init_lora draws them, and are trained. The layer begins in
        the mode, train or eval, that base is in, as its train() sets it. dropout: the rate at which
        A loses entries of x, in training mode only.

        Raises ValueError: r not 0 and not a rank that init_lora allows, as it does.
        """
        # Task: draw the adapter, take over the base's parameters and freeze them, keep the rest.
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.alpha = r, alpha
        if r != 0:
            dtype = base.weight.dtype
            A, B = init_lora(self.in_features, self.out_features, r, generator, dtype=dtype)
            self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(B)
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        if self.bias is not None:
            self.bias.requires_grad_(train_bias)
        self.dropout = nn.Dropout(dropout)
        self.train_bias, self.auto_merge, self.merged = train_bias, auto_merge, False
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out): Eq. 3, from weight alone while merged.

        Unmerged, no tensor as large as weight is made. In training mode a share `dropout` of the
        entries of x, each on its own, does not reach A, and the others do 1 / (1 - dropout) times.
        Merged, nothing is dropped, and lora_A and lora_B get no gradient.
        """
        # Task: the plain layer where there is nothing to add, else lora_forward with a mask.
        if self.r == 0 or self.merged:
            return F.linear(x, self.weight, self.bias)
        keep = self.dropout(torch.ones_like(x)) if self.training else None
        A, B, bias = self.lora_A, self.lora_B, self.bias
        return lora_forward(x, self.weight, A, B, alpha=self.alpha, bias=bias, keep=keep)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update into weight, in place; where it is in already, or r = 0, do nothing."""
        # Task: `merge` of this file, once, and remember it.
        if self.r != 0 and not self.merged:
            self.weight.copy_(merge(self.weight, self.lora_A, self.lora_B, alpha=self.alpha))
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of weight, in place; where it is not in, do nothing."""
        # Task: the way back.
        if self.merged:
            self.weight.copy_(unmerge(self.weight, self.lora_A, self.lora_B, alpha=self.alpha))
            self.merged = False

    def train(self, mode: bool = True) -> LoRALinear:
        """Change to training mode, or with mode=False, which is eval(), to eval mode; returns self.

        With auto_merge, training mode unmerges and eval mode merges; without, neither does.
        """
        # Task: what every module does (super), then merge or unmerge where that is wanted.
        super().train(mode)
        if self.auto_merge:
            (self.unmerge if mode else self.merge)()
        return self


def apply_lora(
    model: nn.Module,
    r: int,
    *,
    alpha: float,
    targets: tuple[str, ...],
    generator: torch.Generator,
    dropout: float = 0.0,
    train_bias: bool = False,
    auto_merge: bool = False,
) -> list[str]:
    """Put a LoRALinear in place of every targeted nn.Linear; returns their names  [section 4.2]

    A target, "q_proj" or "1.q_proj", means the layers whose dotted name ends with it, names taken
    whole: it means "q_proj" and "block.1.q_proj", but not "block.1.freq_proj". Every other
    parameter of the model is frozen. Adapters are drawn in the order of the names, which are
    sorted as strings; r, alpha, generator and the options are those of LoRALinear.

    Raises ValueError: no nn.Linear is meant (names those there are); the model is as it was then.
    """
    # Task: find the layers, freeze the model, and replace each in the module that holds it.
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = sorted(n for n in linears if any(f".{n}".endswith(f".{t}") for t in targets))
    if not names:
        raise ValueError(f"no nn.Linear is called {targets}; there are {sorted(linears)}")
    model.requires_grad_(False)
    for name in names:
        layer = LoRALinear(
            linears[name],
            r,
            alpha=alpha,
            generator=generator,
            dropout=dropout,
            train_bias=train_bias,
            auto_merge=auto_merge,
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return names


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What a task adds to the base: copies of the adapters of all LoRALinears, by dotted name.

    Keys: "<name of the layer>.lora_A" and ".lora_B", and ".bias" where the layer trains it; without
    "<name>." if the model itself is the layer. The same whether merged or not; the copies carry no
    gradient, and later training does not change them.
    """
    # Task: look through the modules of the model; weight is not part of it.
    found = {}
    for prefix, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            for name, parameter in layer.named_parameters(prefix=prefix):
                last = name.rpartition(".")[2]
                if last in ("lora_A", "lora_B") or (last == "bias" and layer.train_bias):
                    found[name] = parameter.detach().clone()
    return found


def load_lora(model: nn.Module, adapter: dict[str, Tensor]) -> None:
    """Give the model another adapter, one that lora_state_dict returned  [section 4.2]

    The values are copied, in the dtype of the model, whose mode stays. A layer that is merged is
    merged with the new adapter afterwards, and the old one is out of its weight: the base is what
    it was.

    Raises ValueError: adapter lacks a tensor ("missing"), has one that the model does not
    ("unexpected"), or one of another shape ("shape"), naming its key; the model is as it was then.
    """
    # Task: check everything before anything is written; unmerge with the OLD factors.
    own = lora_state_dict(model)
    if missing := set(own) - set(adapter):
        raise ValueError(f"missing in the adapter: {sorted(missing)}")
    if unexpected := set(adapter) - set(own):
        raise ValueError(f"unexpected in the adapter: {sorted(unexpected)}")
    for name, tensor in adapter.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name} has the shape {tensor.shape}, not {own[name].shape}")
    merged = [m for m in model.modules() if isinstance(m, LoRALinear) and m.merged]
    for layer in merged:
        layer.unmerge()
    with torch.no_grad():
        for name, tensor in adapter.items():
            model.get_parameter(name).copy_(tensor)
    for layer in merged:
        layer.merge()


def count_trainable(model: nn.Module) -> int:
    """How many numbers training moves: entries of all parameters that require a gradient."""
    # Task: one line; a parameter that is used twice counts once.
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def lora_param_count(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """|Theta|, the size of an adapter of rank r for matrices (out, in)  [section 5.1]

    For L matrices (d, d) it is 2 L d r.
    """
    # Task: how many entries have A and B together?
    return sum(r * (rows + columns) for rows, columns in shapes)


def subspace_similarity(A1: Tensor, A2: Tensor, i: int, j: int) -> float:
    """How much of one leading subspace lies in another: (r1, n), (r2, n) -> phi  [Eq. 4]

        phi = |U_A1^i^T U_A2^j|_F^2 / min(i, j)

    U_A^i: the right singular vectors of A, in R^n, of its i largest singular values. phi is 1 where
    one span holds the other, 0 where they are orthogonal. A Python float, computed in float64.

    Raises ValueError: i outside [1, min(r1, n)] ("i" and its value), j likewise for A2 ("j").
    """
    # Task: check i and j, decompose both matrices, keep the leading directions of R^n, compare.
    for name, k, A in (("i", i, A1), ("j", j, A2)):
        if not 1 <= k <= min(A.shape):
            raise ValueError(f"{name} = {k} is outside [1, {min(A.shape)}]")
    U1 = torch.linalg.svd(A1.double(), full_matrices=False).Vh[:i]  # (i, n)
    U2 = torch.linalg.svd(A2.double(), full_matrices=False).Vh[:j]  # (j, n)
    return ((U1 @ U2.T).square().sum() / min(i, j)).item()


def amplification(dW: Tensor, W: Tensor, r: int) -> tuple[float, float]:
    """How much louder an update is than what W has in its directions  [section 7.3, Table 7]

        proj = |U^T W V|_F,   factor = |dW|_F / proj

    U, V: the left and right singular vectors of dW, (out, in), for its r largest singular values.
    Returns (factor, proj), Python floats, computed in float64; factor is inf where proj is 0.

    Raises ValueError: r outside [1, min(out, in)] ("r" and its value).
    """
    # Task: decompose dW, not W; both sides are projected.
    if not 1 <= r <= min(dW.shape):
        raise ValueError(f"r = {r} is outside [1, {min(dW.shape)}]")
    dW, W = dW.double(), W.double()
    U, _, Vh = torch.linalg.svd(dW, full_matrices=False)
    proj = torch.linalg.matrix_norm(U[:, :r].T @ W @ Vh[:r].T)
    return (torch.linalg.matrix_norm(dW) / proj).item(), proj.item()


def finetune(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    batch: int = 64,
) -> list[float]:
    """Train what may be trained, to name the classes y (n,) int64 of x (n, ...)  [section 4.2]

    model: x (b, ...) -> logits (b, classes). Each step draws `batch` examples with replacement, by
    one torch.randint of shape (batch,), and takes one step of torch.optim.Adam, with rate lr, down
    the mean cross-entropy. Adam holds parameters that require a gradient, and no others: the frozen
    ones keep every bit. Gradients from before do not count.
    The model trains in training mode and returns to the mode it was in.

    Returns the loss of each step, before its update, as Python floats.
    Raises ValueError: no parameter requires a gradient ("trainable").
    """
    # Task: choose the parameters, set the mode, loop, set the mode back.
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("nothing is trainable: all parameters of the model are frozen")
    optimizer, losses, training = torch.optim.Adam(trainable, lr=lr), [], model.training
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator, device=generator.device)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.train(training)
    return losses


def batched_lora(
    x: Tensor, W0: Tensor, As: Tensor, Bs: Tensor, ids: Tensor, *, alpha: float
) -> Tensor:
    """One adapter a request, many in a batch: (b, t, in), (out, in) -> (b, t, out)  [section 4.2]

        y[i] = lora_forward(x[i], W0, As[ids[i]], Bs[ids[i]])

    As: (K, r, in). Bs: (K, out, r). ids: (b,) int64; -1 asks for the base model: no adapter, be it
    full of NaN, touches the value or the gradient of that request. Differentiable by all but ids.
    No tensor (out, in) is made, let alone one a request, and there is no loop over requests.

    Raises ValueError: an id outside [-1, K) ("id" and its value).
    """
    # Task: check ids; the base for all, then a batched product for the requests with an adapter.
    outside = ids[(ids < -1) | (ids >= len(As))]
    if len(outside):
        raise ValueError(f"the id {outside[0].item()} is outside [-1, {len(As)})")
    rows = (ids >= 0).nonzero()[:, 0]  # the requests with an adapter
    low = x[rows] @ As[ids[rows]].mT  # (requests, t, r)
    update = low @ Bs[ids[rows]].mT
    return (x @ W0.T).index_add(0, rows, update, alpha=alpha / As.shape[1])
