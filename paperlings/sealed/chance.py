"""A generator that goes to the candidate and comes back: it may come back further on,
and nowhere else.

The judge draws from its generators after the candidate has, so whoever chose their state would
choose what is drawn. So a state that comes back is taken only where drawing leads to it.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from paperlings.sealed.wire import WireError

# how torch keeps a Mersenne twister: seed, left, seeded, next, 624 words, cached normals
WORDS, START = 624, 24
END = START + 8 * WORDS
SIZE = 5056
MOST = 1 << 15  # blocks of 624 numbers that one call may draw


def advance(generator: torch.Generator, state: Tensor) -> None:
    """Move the judge's generator on to `state`. Raises WireError where drawing does not lead
    there.
    """
    if state.dtype != torch.uint8 or state.shape != (SIZE,):
        raise WireError("a generator comes back as none")
    new, old = bytes(state.numpy()), bytes(generator.get_state().numpy())
    if new == old:
        return
    seed, left, seeded, following = struct.unpack_from("<QiiQ", new)
    fits = (left + following == WORDS + 1 and 0 <= following <= WORDS) or (left, following) == (
        1,
        0,
    )
    if seed != struct.unpack_from("<Q", old)[0] or seeded != 1 or not fits or not _is_calm(new):
        raise WireError("a generator comes back in a state that none has")
    twin = torch.Generator().set_state(generator.get_state())
    block = torch.empty(WORDS, dtype=torch.int32)
    for _ in range(MOST):
        if bytes(twin.get_state().numpy())[START:END] == new[START:END]:
            generator.set_state(state.clone())
            return
        block.random_(generator=twin)
    raise WireError("a generator comes back in a state to which drawing does not lead")


def _is_calm(state: bytes) -> bool:
    """Whether the normal number that is kept for the next draw could have been drawn."""
    kept = [*struct.unpack_from("<ddd", state, END), *struct.unpack_from("<f", state, SIZE - 8)]
    return all(abs(x) < 40 for x in kept)
