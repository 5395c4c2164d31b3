"""The three lanes in which a Triton kernel is judged, and what this machine can tell of each.

interpreter: values, memory safety and traffic, on any Linux CPU.  compiled: what the compiler made
of it, on any Linux CPU.  gate: how fast it is, on an NVIDIA GPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys

KNOWN = ("3.6", "3.7", "3.8", "3.9")  # versions of triton whose interpreter and compiler are known
INTERPRETER, COMPILED, GATE = LANES = ("interpreter", "compiled", "gate")


def switch_on_interpreter() -> None:
    """Have triton interpret kernels in this process; it asks when it is imported, never again."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"


def why_not_interpreter() -> str:
    """Why this process cannot interpret kernels; "" where it can."""
    if reason := _why_no_triton():
        return reason
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        return "triton was imported before the interpreter was switched on"
    return ""


def why_not_compiled() -> str:
    """Why this machine cannot compile kernels; "" where it can."""
    return _why_no_triton()


def why_not_gate() -> str:
    """Why this machine cannot time kernels; "" where it can."""
    if reason := _why_no_triton():
        return reason
    return _why_no_gpu()


@functools.cache
def _why_no_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it needs Linux)"
    version = importlib.metadata.version("triton")
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return f"triton {version} is not known here; known are {', '.join(KNOWN)}"
    return ""


@functools.cache
def _why_no_gpu() -> str:
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU"
    return ""
