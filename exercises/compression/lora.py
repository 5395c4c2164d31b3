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
    # TODO: refuse a rank that is none, then draw A; what must B be for B A to vanish?
    raise NotImplementedError("init_lora")


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
    # TODO: two branches that are added; in which order are three matrices multiplied cheaply?
    raise NotImplementedError("lora_forward")


def lora_backward(
    dy: Tensor, x: Tensor, W0: Tensor, A: Tensor, B: Tensor, *, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(dy * lora_forward(x, ...)): dy (..., out), x (..., in) -> dx, dA, dB

        dx = dy W0 + s (dy B) A,   dA = s (dy B)^T x,   dB = s dy^T (x A^T),   s = alpha / r

    in which the leading axes of x and dy are one. dx, dA and dB have the shapes of x, A and B.
    W0 gets no gradient: it is frozen, and no tensor of its size is made here either.
    """
    # TODO: flatten the leading axes; dy B and x A^T are the two thin products to start from.
    raise NotImplementedError("lora_backward")


def merge(W0: Tensor, A: Tensor, B: Tensor, *, alpha: float) -> Tensor:
    """W = W0 + (alpha / r) B A, (out, in), a new tensor: no latency is added  [section 4.1]"""
    # TODO: one line.
    raise NotImplementedError("merge")


def unmerge(W: Tensor, A: Tensor, B: Tensor, *, alpha: float) -> Tensor:
    """W0 = W - (alpha / r) B A, (out, in), a new tensor: the base again, up to rounding."""
    # TODO: one line.
    raise NotImplementedError("unmerge")


def swap(W: Tensor, old: tuple[Tensor, Tensor, float], new: tuple[Tensor, Tensor, float]) -> Tensor:
    """A merged weight from one task to another, (out, in), a new tensor  [section 4.1]

    old, new: adapters (A, B, alpha), whose ranks may differ. W0 is not needed for it.
    """
    # TODO: take one update back, add the other.
    raise NotImplementedError("swap")


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
        # TODO: draw the adapter, take over the base's parameters and freeze them, keep the rest.
        raise NotImplementedError("LoRALinear.__init__")

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out): Eq. 3, from weight alone while merged.

        Unmerged, no tensor as large as weight is made. In training mode a share `dropout` of the
        entries of x, each on its own, does not reach A, and the others do 1 / (1 - dropout) times.
        Merged, nothing is dropped, and lora_A and lora_B get no gradient.
        """
        # TODO: the plain layer where there is nothing to add, else lora_forward with a mask.
        raise NotImplementedError("LoRALinear.forward")

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update into weight, in place; where it is in already, or r = 0, do nothing."""
        # TODO: `merge` of this file, once, and remember it.
        raise NotImplementedError("LoRALinear.merge")

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of weight, in place; where it is not in, do nothing."""
        # TODO: the way back.
        raise NotImplementedError("LoRALinear.unmerge")

    def train(self, mode: bool = True) -> LoRALinear:
        """Change to training mode, or with mode=False, which is eval(), to eval mode; returns self.

        With auto_merge, training mode unmerges and eval mode merges; without, neither does.
        """
        # TODO: what every module does (super), then merge or unmerge where that is wanted.
        raise NotImplementedError("LoRALinear.train")


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
    # TODO: find the layers, freeze the model, and replace each in the module that holds it.
    raise NotImplementedError("apply_lora")


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What a task adds to the base: copies of the adapters of all LoRALinears, by dotted name.

    Keys: "<name of the layer>.lora_A" and ".lora_B", and ".bias" where the layer trains it; without
    "<name>." if the model itself is the layer. The same whether merged or not; the copies carry no
    gradient, and later training does not change them.
    """
    # TODO: look through the modules of the model; weight is not part of it.
    raise NotImplementedError("lora_state_dict")


def load_lora(model: nn.Module, adapter: dict[str, Tensor]) -> None:
    """Give the model another adapter, one that lora_state_dict returned  [section 4.2]

    The values are copied, in the dtype of the model, whose mode stays. A layer that is merged is
    merged with the new adapter afterwards, and the old one is out of its weight: the base is what
    it was.

    Raises ValueError: adapter lacks a tensor ("missing"), has one that the model does not
    ("unexpected"), or one of another shape ("shape"), naming its key; the model is as it was then.
    """
    # TODO: check everything before anything is written; unmerge with the OLD factors.
    raise NotImplementedError("load_lora")


def count_trainable(model: nn.Module) -> int:
    """How many numbers training moves: entries of all parameters that require a gradient."""
    # TODO: one line; a parameter that is used twice counts once.
    raise NotImplementedError("count_trainable")


def lora_param_count(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """|Theta|, the size of an adapter of rank r for matrices (out, in)  [section 5.1]

    For L matrices (d, d) it is 2 L d r.
    """
    # TODO: how many entries have A and B together?
    raise NotImplementedError("lora_param_count")


def subspace_similarity(A1: Tensor, A2: Tensor, i: int, j: int) -> float:
    """How much of one leading subspace lies in another: (r1, n), (r2, n) -> phi  [Eq. 4]

        phi = |U_A1^i^T U_A2^j|_F^2 / min(i, j)

    U_A^i: the right singular vectors of A, in R^n, of its i largest singular values. phi is 1 where
    one span holds the other, 0 where they are orthogonal. A Python float, computed in float64.

    Raises ValueError: i outside [1, min(r1, n)] ("i" and its value), j likewise for A2 ("j").
    """
    # TODO: check i and j, decompose both matrices, keep the leading directions of R^n, compare.
    raise NotImplementedError("subspace_similarity")


def amplification(dW: Tensor, W: Tensor, r: int) -> tuple[float, float]:
    """How much louder an update is than what W has in its directions  [section 7.3, Table 7]

        proj = |U^T W V|_F,   factor = |dW|_F / proj

    U, V: the left and right singular vectors of dW, (out, in), for its r largest singular values.
    Returns (factor, proj), Python floats, computed in float64; factor is inf where proj is 0.

    Raises ValueError: r outside [1, min(out, in)] ("r" and its value).
    """
    # TODO: decompose dW, not W; both sides are projected.
    raise NotImplementedError("amplification")


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
    # TODO: choose the parameters, set the mode, loop, set the mode back.
    raise NotImplementedError("finetune")


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
    # TODO: check ids; the base for all, then a batched product for the requests with an adapter.
    raise NotImplementedError("batched_lora")
