"""What the gate measures of kernels/token_log_probs.

Both passes are bound by memory: forward reads the logits, backward reads them and writes as many.
Liger's cross entropy is no peer: it makes the gradient in forward, in place of the logits, so that
neither pass of it does what one of these does.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from paperlings.lanes.contest import Contest

TOKENS, VOCABULARY = 8192, 151936  # a vocabulary of today
IGNORE = -100
ROWS = 256  # that the truth looks at together


def forward_inputs(
    generator: torch.Generator,
    device: torch.device,
    tokens: int = TOKENS,
    vocabulary: int = VOCABULARY,
    scale: float = 3.0,
    ignored: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """Logits and labels; of the labels, every `ignored`-th is no token."""
    logits = torch.empty(tokens, vocabulary, dtype=dtype, device=device)
    logits.normal_(0.0, scale, generator=generator)
    labels = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    if ignored:
        labels[::ignored] = IGNORE
    return logits, labels


def backward_inputs(
    generator: torch.Generator, device: torch.device, scale: float = 3.0, **options: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dlogp, logits, labels and lse."""
    logits, labels = forward_inputs(generator, device, scale=scale, **options)
    dlogp = torch.randn(len(labels), generator=generator, device=device)
    lse = torch.cat([rows.float().logsumexp(-1) for rows in logits.split(ROWS)])
    return dlogp, logits, labels, lse


def forward_truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logp, lse = [], []
    for x, label in zip(logits.split(ROWS), labels.split(ROWS), strict=True):
        counted = label != IGNORE
        rows = x.double().log_softmax(-1)
        chosen = label.where(counted, 0)[:, None]
        at = rows.gather(-1, chosen)[:, 0]
        logp.append(at.where(counted, 0.0))
        lse.append((x.double().gather(-1, chosen)[:, 0] - at).where(counted, 0.0))
    return torch.cat(logp), torch.cat(lse)


def forward_eager(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    counted = labels != IGNORE
    lse = logits.float().logsumexp(-1)
    logit = logits.gather(-1, labels.where(counted, 0)[:, None])[:, 0].float()
    return (logit - lse).where(counted, 0.0), lse.where(counted, 0.0)


def backward_truth(dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor) -> Tensor:
    dlogits = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    for i in range(0, len(labels), ROWS):
        here = slice(i, i + ROWS)
        label = labels[here, None]
        cols = torch.arange(logits.shape[1], device=logits.device)
        softmax = (logits[here].double() - lse[here, None]).exp()
        rows = dlogp[here, None] * ((cols == label).double() - softmax)
        dlogits[here] = rows.where(label != IGNORE, 0.0)
    return dlogits


def backward_eager(dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor) -> Tensor:
    cols = torch.arange(logits.shape[1], device=logits.device)
    chosen = (cols == labels[:, None]).float()
    rows = dlogp[:, None] * (chosen - (logits.float() - lse[:, None]).exp())
    return rows.where(labels[:, None] != IGNORE, 0.0).to(logits.dtype)


FAMILIES = {
    "odd rows": {"tokens": 300, "vocabulary": 50257},
    "one block and one logit": {"tokens": 70, "vocabulary": 8193},
    "one logit": {"tokens": 33, "vocabulary": 1},
    "large": {"tokens": 130, "vocabulary": 32000, "scale": 3000.0},
    "tiny": {"tokens": 130, "vocabulary": 32000, "scale": 1e-3},
    "ignored": {"tokens": 200, "vocabulary": 32000, "ignored": 3},
    "float32": {"tokens": 130, "vocabulary": 32001, "dtype": torch.float32},
    "float16": {"tokens": 130, "vocabulary": 32008, "dtype": torch.float16},
    "beyond 2^31": {"tokens": 17000, "vocabulary": 128256},
}

CONTESTS = [
    Contest(
        name="forward",
        task="token_log_probs_fwd",
        inputs=forward_inputs,
        truth=forward_truth,
        eager=forward_eager,
        families={name: partial(forward_inputs, **sizes) for name, sizes in FAMILIES.items()},
        bytes=TOKENS * ((VOCABULARY + 1) * 2 + 16),
        flops=4 * TOKENS * VOCABULARY,  # compare, subtract, exp, add
    ),
    Contest(
        name="backward",
        task="token_log_probs_bwd",
        inputs=backward_inputs,
        truth=backward_truth,
        eager=backward_eager,
        families={name: partial(backward_inputs, **sizes) for name, sizes in FAMILIES.items()},
        bytes=TOKENS * (2 * VOCABULARY * 2 + 16),
        flops=4 * TOKENS * VOCABULARY,  # subtract, exp, subtract, multiply
    ),
]
