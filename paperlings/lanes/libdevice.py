"""The functions of NVIDIA's libdevice that NumPy and SciPy have, too, by libdevice's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special


def _fma(x: Any, y: Any, z: Any) -> Any:
    """The product is not rounded before the sum is."""
    return x.astype(np.float64) * y + z


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add_rn": np.add,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "cosh": np.cosh,
    "cospi": lambda x: np.cos(np.pi * x),
    "div_rn": np.divide,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfcinv": special.erfcinv,
    "erfcx": special.erfcx,
    "erfinv": special.erfinv,
    "exp": np.exp,
    "exp10": special.exp10,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "fabs": np.abs,
    "fdim": lambda x, y: np.maximum(x - y, 0),
    "fdivide": np.divide,
    "finite": np.isfinite,
    "floor": np.floor,
    "fma": _fma,
    "fma_rn": _fma,
    "fmaf_rn": _fma,
    "fmod": np.fmod,
    "hypot": np.hypot,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "j0": special.j0,
    "j1": special.j1,
    "ldexp": np.ldexp,
    "lgamma": special.gammaln,
    "llabs": np.abs,
    "llrint": np.rint,
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "mul_rn": np.multiply,
    "nearbyint": np.rint,
    "normcdf": special.ndtr,
    "normcdfinv": special.ndtri,
    "pow": np.power,
    "powi": np.power,
    "rcbrt": lambda x: 1 / np.cbrt(x),
    "rcp_rn": np.reciprocal,
    "remainder": lambda x, y: x - np.rint(x / y) * y,
    "rint": np.rint,
    "round": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rsqrt_rn": lambda x: 1 / np.sqrt(x),
    "saturate": lambda x: np.clip(np.nan_to_num(x), 0, 1),
    "signbit": np.signbit,
    "sin": np.sin,
    "sinh": np.sinh,
    "sinpi": lambda x: np.sin(np.pi * x),
    "sqrt": np.sqrt,
    "sqrt_rn": np.sqrt,
    "sub_rn": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "tgamma": special.gamma,
    "trunc": np.trunc,
    "y0": special.y0,
    "y1": special.y1,
}


def find(symbol: str) -> Callable[..., Any] | None:
    """The function that a symbol means: "tanhf", "fast_expf", "isnand", "fsqrt_rn"."""
    name = symbol.removeprefix("fast_")
    if name not in FUNCTIONS and name.endswith(("f", "d")):
        name = name[:-1]
    if name not in FUNCTIONS and name.endswith("_rn"):
        name = name[1:]
    return FUNCTIONS.get(name)
