"""Host functions and kernels that fail in every way there is, and stubs."""

import os

import torch
import triton
import triton.language as tl


@triton.jit
def _square(A, C, K: tl.constexpr):
    rows, inner = tl.arange(0, 16), tl.arange(0, K)
    a = tl.load(A + rows[:, None] * K + inner[None, :])
    tl.store(C + rows[:, None] * 16 + rows[None, :], tl.dot(a, tl.trans(a)))


@triton.jit
def _stub(X):
    """What a learner has not written yet."""
    # TODO: everything
    raise NotImplementedError("stub_below")


@triton.jit
def _above(X):
    _stub(X)


def narrow(a):
    _square[(1,)](a, a.new_empty(16, 16, dtype=torch.float32), 8)


def stub(a):
    raise NotImplementedError("stub")


def stub_below(a):
    _above[(1,)](a)


def chatty(a):
    print("narrow is called", flush=True)
    os.write(1, b"and again\n")
    _square[(1,)](a, a.new_empty(16, 16, dtype=torch.float32), 16)


def peeks(a):
    _square[(1,)](a, a, 16 if a.sum().item() > 0 else 32)


def elsewhere(a):
    _square[(1,)](a, torch.empty(16, 16), 16)


def raises(a):
    raise ValueError("a is not to my taste")


def hides(a):
    try:
        narrow(a)
    except Exception:
        chatty(a)


def silent(a):
    return a


def short(a):
    _square[(1,)](a)


def dies(a):
    os._exit(3)


def hangs(a):
    while True:
        pass
