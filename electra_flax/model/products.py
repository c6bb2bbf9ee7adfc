"""Products of activations with weights: computed in the activations' type, the weights' gradients in float32.

A weight's gradient is a sum over all rows of the batch, which lie on several devices. Left to itself, JAX rounds each
device's part to the type of the product before the devices add theirs up.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def dot_rows(x: jax.Array, kernel: jax.Array, contracted: int = 0, result: DTypeLike | None = None) -> jax.Array:
    """Contract the last dimension of x with dimension `contracted` of a matrix, which is cast to the type of x.

    `result` is the type of the product, that of x where it is None. All other dimensions of x become one: XLA's CPU
    compiler transposes operands of more than two dimensions in memory for the kernel's gradient, and folds a matrix's
    transpose into the product.
    """
    rows = x.reshape(-1, x.shape[-1])
    product: jax.Array = _product(rows, kernel, contracted, jnp.dtype(x.dtype if result is None else result))
    return product.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(rows: jax.Array, kernel: jax.Array, contracted: int, result: DTypeLike) -> jax.Array:
    return _dot(rows, kernel.astype(rows.dtype), 1, contracted, result)


def _product_gradients(contracted: int, result: DTypeLike, kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, kernel = kept
    rows_grad = _dot(grad, kernel.astype(rows.dtype), 1, 1 - contracted, result).astype(rows.dtype)
    kernel_grad = _dot(rows, grad, 0, 0, jnp.promote_types(kernel.dtype, result))
    return rows_grad, (kernel_grad.T if contracted else kernel_grad).astype(kernel.dtype)


def _dot(left: jax.Array, right: jax.Array, left_dim: int, right_dim: int, result: DTypeLike) -> jax.Array:
    return jax.lax.dot_general(left, right, (((left_dim,), (right_dim,)), ((), ())), preferred_element_type=result)


_product.defvjp(lambda rows, kernel, *fixed: (_product(rows, kernel, *fixed), (rows, kernel)), _product_gradients)


@jax.custom_vjp
def add_bias(x: jax.Array, bias_D: jax.Array) -> jax.Array:
    """Return x + bias over the last dimension, in the type of x."""
    return x + bias_D.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _bias_gradients(bias_D: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    return grad, grad.astype(bias_D.dtype).sum(axis=tuple(range(grad.ndim - 1)))


add_bias.defvjp(lambda x, bias_D: (add_bias(x, bias_D), bias_D), _bias_gradients)


@jax.custom_vjp
def look_up(table_PE: jax.Array, places_BT: jax.Array) -> jax.Array:
    """Return the rows of a table of positions at these places.

    Their gradient is a product with ones and zeros: a scatter would have the first tokens of all examples wait for one
    row of the table.
    """
    return table_PE.at[places_BT].get(mode="promise_in_bounds")


def _look_up_gradient(kept: Any, grad_BTE: jax.Array) -> tuple[jax.Array, None]:
    table_PE, places_BT = kept
    is_at_RP = places_BT.reshape(-1, 1) == jnp.arange(table_PE.shape[0])[None, :]
    grad_RE = grad_BTE.reshape(-1, grad_BTE.shape[-1])
    # Float32 as everything about the tables: a TPU would round the operands to bfloat16.
    return jnp.matmul(is_at_RP.astype(grad_RE.dtype).T, grad_RE, precision="highest"), None


look_up.defvjp(lambda table_PE, places_BT: (look_up(table_PE, places_BT), (table_PE, places_BT)), _look_up_gradient)
