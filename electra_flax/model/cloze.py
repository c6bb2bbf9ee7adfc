"""Every token of a text guessed from its neighbours, and the loss of that in parts: all logits would take gigabytes.

Array names: B batch, T tokens, D hidden, E embedding, V vocabulary, P parts, C tokens of a part.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from electra_flax.model.products import dot_rows

_PARTS = 8
"""Of a row. More would be less memory, and more passes over the table's gradient, to which each part adds."""


def neighbours(
    hidden_BTD: jax.Array, side: Literal["left", "right"], segments_BT: jax.Array, places_BT: jax.Array | None
) -> jax.Array:
    """Return for each token the state of its neighbour on one side.

    At the ends of a row there is none: as in the original, the token at the other end stands for it. Where places_BT
    are given, rows hold several examples, and each is a row of its own.
    """
    step = 1 if side == "left" else -1
    if places_BT is None:
        return jnp.roll(hidden_BTD, step, axis=1)
    tokens = segments_BT.shape[1]
    place_BT = jax.lax.broadcasted_iota(jnp.int32, segments_BT.shape, 1)
    is_last_BT = (segments_BT != jnp.roll(segments_BT, -1, axis=1)) | (place_BT == tokens - 1)
    if side == "left":
        end_BT = jax.lax.cummin(jnp.where(is_last_BT, place_BT, tokens), axis=1, reverse=True)
        neighbour_BT = jnp.where(places_BT == 0, end_BT, place_BT - 1)
    else:
        neighbour_BT = jnp.where(is_last_BT, place_BT - places_BT, place_BT + 1)
    return jnp.take_along_axis(hidden_BTD, neighbour_BT[..., None], axis=1)


@jax.custom_vjp
def cloze_nll(
    x_BTE: jax.Array, table_VE: jax.Array, bias_V: jax.Array, ids_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of -log q of the text's own tokens, and log q_BT; float32.

    q is the softmax of x times the table transposed, plus the bias; the product is in the type of x. The second result
    carries no gradient.

    The sum is linear in what is weighted, so its gradient is known as soon as a part's logits are: it is taken in the
    forward pass, and no logits are kept or computed again.
    """

    def part(total: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        x_BCE, ids_BC, weights_BC = given
        nll, log_q_BC = _part_nll(x_BCE, table_VE, bias_V, ids_BC, weights_BC)
        return total + nll, log_q_BC

    total, log_q_PBC = jax.lax.scan(part, jnp.float32(0), _parts(x_BTE, ids_BT, weights_BT))
    return total, _whole(log_q_PBC, ids_BT.shape[1])


def _forward(*inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    x_BTE, table_VE, bias_V, ids_BT, weights_BT = inputs

    def part(sums: Any, given: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x_BCE, ids_BC, weights_BC = given
        (nll, log_q_BC), (x_grad_BCE, *grads) = _part_gradients(x_BCE, table_VE, bias_V, ids_BC, weights_BC)
        return jax.tree.map(jnp.add, sums, (nll, *grads)), (log_q_BC, x_grad_BCE)

    nothing = (jnp.float32(0), jnp.zeros_like(table_VE), jnp.zeros_like(bias_V))
    (total, *grads), (log_q_PBC, x_grad_PBCE) = jax.lax.scan(part, nothing, _parts(x_BTE, ids_BT, weights_BT))
    tokens = ids_BT.shape[1]
    return (total, _whole(log_q_PBC, tokens)), (_whole(x_grad_PBCE, tokens), *grads)


def _backward(grads: Any, given: tuple[jax.Array, jax.Array]) -> Any:
    scale, _ = given
    return (*((grad * scale).astype(grad.dtype) for grad in grads), None, None)


cloze_nll.defvjp(_forward, _backward)


def logits_of(x: jax.Array, table_VE: jax.Array, bias_V: jax.Array) -> jax.Array:
    """Return float32 logits [..., V] of states [..., E] in the type of x."""
    return dot_rows(x, table_VE, contracted=1, result=jnp.float32) + bias_V[None, None, :]


def _part_nll(
    x_BCE: jax.Array, table_VE: jax.Array, bias_V: jax.Array, ids_BC: jax.Array, weights_BC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_BCV = logits_of(x_BCE, table_VE, bias_V)
    # A comparison instead of a gather, as in training/losses.py.
    is_own_BCV = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2) == ids_BC[..., None]
    own_BC = jnp.where(is_own_BCV, logits_BCV, 0.0).sum(axis=-1)
    log_q_BC = own_BC - jax.nn.logsumexp(logits_BCV, axis=-1)
    return -(log_q_BC * weights_BC).sum(), log_q_BC


_part_gradients = jax.value_and_grad(_part_nll, argnums=(0, 1, 2), has_aux=True)


def _parts(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return [B, T, ...] as [P, B, C, ...]: each part has tokens of all rows, wherever these lie. 0 fills the last."""
    tokens = arrays[0].shape[1]
    number = min(_PARTS, tokens)
    length = -(-tokens // number)

    def parts(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, number * length - tokens), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], number, length, *x.shape[2:]), 1, 0)

    return tuple(map(parts, arrays))


def _whole(x: jax.Array, tokens: int) -> jax.Array:
    """Return [P, B, C, ...] as [B, T, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :tokens]
