"""Floating-point operations of matrix products, counted on the traced program: two for each multiply-add."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model.attention import xla_attention
from electra_flax.training import initial_state, step
from electra_flax.training.objectives import make_objective


def step_flops(config: Config) -> int:
    """Return the operations of one optimizer step over the whole batch, traced with plain attention."""
    objective = make_objective(config, SpecialTokens(*range(5)), (5,))  # which ids they are changes no shape
    slices = config.training.gradient_accumulation_steps

    def gradients(params: Any, batch: Any, *frozen: Any) -> Any:
        return step.accumulate_gradients(
            objective, params, batch, jax.random.key(0), jax.numpy.int32(0), xla_attention, slices, *frozen
        )[0]

    params, batch = initial_state.abstract_state(config).params, initial_state.abstract_batch(config)
    return matmul_flops(jax.make_jaxpr(gradients)(params, batch, *initial_state.abstract_frozen(config)))


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Return the operations of all dot_generals, those in loops times their trips; elementwise work is not counted."""
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
    contracted: tuple[int, ...] = equation.params["dimension_numbers"][0][0]
    left: tuple[int, ...] = equation.invars[0].aval.shape
    result: tuple[int, ...] = equation.outvars[0].aval.shape
    return 2 * math.prod(result) * math.prod(left[dim] for dim in contracted)
