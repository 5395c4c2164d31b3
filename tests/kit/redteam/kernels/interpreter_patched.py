"""Kernels are interpreted by the candidate.

Rejected by: test_the_judge_is_left_alone[token_log_probs_fwd]
Says: replaces triton.runtime.interpreter
"""

import triton

_call = triton.runtime.interpreter.GridExecutor.__call__
triton.runtime.interpreter.GridExecutor.__call__ = lambda self, *args, **kwargs: _call(
    self, *args, **kwargs
)
