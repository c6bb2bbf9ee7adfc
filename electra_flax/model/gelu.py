"""GELU, and its product with the matrix after it. Array names: R rows, D hidden, F feed-forward."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from electra_flax.model.products import dot_rows

# Odd polynomial u(x) with Phi(x) = (1 + tanh(u(x))) / 2 to 0.2% for |x| <= 6, a fit of atanh(erf(x / sqrt(2))).
_PHI = (0.79595518, 0.038135070, -0.00052794081, 6.3985372e-06, -3.2708044e-08)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return the exact form, x * Phi(x), computed in float32; for bfloat16 to within its rounding.

    Phi is the dearest elementwise function of the model, so the derivative is taken in the forward pass, where it
    costs little more, and kept in the type of x instead of x.
    """
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    # d/dx (x Phi(x)) = Phi(x) + x phi(x): with Phi at hand, one exponential more.
    cumulative = _phi_rounded(wide) if x.dtype == jnp.bfloat16 else 0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2.0 * math.pi)
    return (wide * cumulative).astype(x.dtype), (cumulative + wide * density).astype(x.dtype)


def _phi_rounded(x: jax.Array) -> jax.Array:
    # erf takes a TPU's vector unit 48 operations, tanh one.
    x = jnp.clip(x, -6.0, 6.0)
    square = jnp.square(x)
    factor = jnp.full_like(square, _PHI[-1])
    for coefficient in reversed(_PHI[:-1]):
        factor = factor * square + coefficient
    return 0.5 + 0.5 * jnp.tanh(x * factor)


gelu.defvjp(_gelu_and_slope, lambda slope, grad: (grad * slope,))


def dot_gelu_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return dot_rows of gelu(x); in float32, x is all that is kept of its size for the gradient.

    In bfloat16, which is a TPU's, computing GELU again would take longer than reading it.
    """
    if x.dtype == jnp.bfloat16:
        return dot_rows(gelu(x), kernel)
    return _gelu_product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _gelu_product(x_RF: jax.Array, kernel_FD: jax.Array) -> jax.Array:
    return gelu(x_RF) @ kernel_FD


def _gelu_product_gradients(kept: Any, grad_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_RF, kernel_FD = kept
    # Left alone, XLA finds that GELU was computed before and keeps three arrays instead; it drops an optimization
    # barrier on the CPU, but not a dependence on the gradient.
    x_RF = jnp.where(jnp.isnan(grad_RD[:, :1]), jnp.nan, x_RF)
    value_RF, slope_RF = _gelu_and_slope(x_RF)
    return (grad_RD @ kernel_FD.T) * slope_RF, value_RF.T @ grad_RD


_gelu_product.defvjp(
    lambda x_RF, kernel_FD: (_gelu_product(x_RF, kernel_FD), (x_RF, kernel_FD)), _gelu_product_gradients
)
