"""Floating-point operations of matrix products, counted on the traced program: two for each multiply-add."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """All dot_generals, those inside loops times their trips. Elementwise work is not counted."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total = 0
    for equation in inner.eqns:
        if equation.primitive.name == "dot_general":
            total += _dot_flops(equation)
        else:
            trips = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += trips * sum(matmul_flops(part) for part in jaxprs_in_params(equation.params))
    return total


def _dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)
