"""Random numbers that are a pure function of a row's seed, the place in the network and the position in the row.

Nothing depends on how the batch is cut over devices, processes or accumulation slices, so neither do masks, samples
and dropout. Threefry, JAX's default generator, has that property too, but costs a TPU more than all other elementwise
work of a transformer (docs/performance.md). These draws need far less: bits that no model can learn. A hash of the
position without multiplications fuses into the operation beside it and is computed again in the backward pass
instead of being stored.

Array names: B batch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Bob Jenkins' 32-bit integer hash and the end of his one-at-a-time hash: nine rounds of shifts and additions. Without
# the last three, neighbouring positions are correlated. As int32: a TPU's vector unit compares no unsigned numbers.
# x + (x << n) is written as a product, which the TPU compiler takes apart at no cost; LLVM's time grows exponentially
# with a chain of terms that each name x twice.
_ADD_1, _ADD_2, _ADD_3, _ADD_4 = 0x7ED55D16, 0x165667B1, 0xD3A2646C, 0xFD7046C5
_XOR_1, _XOR_2 = 0xC761C23C, 0xB55A4F09


def row_seeds(key: jax.Array, num_rows: int) -> jax.Array:
    """Return one seed for each row of the global batch, int32 [B]."""
    return jax.lax.bitcast_convert_type(jax.random.bits(key, (num_rows,)), jnp.int32)


def fold_in(seeds_B: jax.Array, number: int) -> jax.Array:
    """Return seeds of their own for a numbered place in the network, int32 [B]."""
    return random_bits(jnp.full_like(seeds_B, number), seeds_B)


def random_bits(position: jax.Array, seed: jax.Array) -> jax.Array:
    """Return 32 bits for each position, int32; `seed` broadcasts against `position`."""

    def shift_left(x: jax.Array, by: int) -> jax.Array:
        return jax.lax.shift_left(x, jnp.int32(by))

    def shift_right(x: jax.Array, by: int) -> jax.Array:
        return jax.lax.shift_right_logical(x, jnp.int32(by))

    # The seed enters twice, so that the streams of two seeds are not one stream read from two places.
    x = position + seed
    x = x * jnp.int32(1 + (1 << 12)) + _signed(_ADD_1)
    x = (x ^ (seed ^ _signed(_XOR_1))) ^ shift_right(x, 19)
    x = x * jnp.int32(1 + (1 << 5)) + _signed(_ADD_2)
    x = (x + _signed(_ADD_3)) ^ shift_left(x, 9)
    x = x * jnp.int32(1 + (1 << 3)) + _signed(_ADD_4)
    x = (x ^ _signed(_XOR_2)) ^ shift_right(x, 16)
    x = x * jnp.int32(1 + (1 << 3))
    x ^= shift_right(x, 11)
    bits: jax.Array = x * jnp.int32(1 + (1 << 15))
    return bits


def uniform(shape: tuple[int, ...], seeds_B: jax.Array) -> jax.Array:
    """Return numbers in [0, 1) of 23 random bits each, float32 [B, ...]."""
    return _as_uniform(_bits_of_rows(shape, seeds_B))


def uniform_at(position: jax.Array, seed: jax.Array) -> jax.Array:
    """Return the numbers that `uniform` has at these positions of the rows with these seeds, which broadcast."""
    return _as_uniform(random_bits(position, seed))


def _as_uniform(bits: jax.Array) -> jax.Array:
    # The bits of a number in [1, 2): the exponent of 1, then 23 random bits. No division, no rounding up to 1.
    mantissa = jax.lax.shift_right_logical(bits, jnp.int32(9)) | jnp.int32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0


def keep_below(rate: float) -> int:
    """Return the number below which bits are kept, as a signed one; one rule for every implementation."""
    return min(round((1.0 - rate) * 2**32) - 2**31, 2**31 - 1)


def dropout(x: jax.Array, rate: float, seeds_B: jax.Array | None) -> jax.Array:
    """Zero each number of x [B, ...] with probability `rate` and scale the others by 1 / (1 - rate).

    Without seeds, or at rate 0, x itself.
    """
    if seeds_B is None or rate == 0.0:
        return x
    bits = _bits_of_rows(x.shape, seeds_B)
    return jnp.where(bits < keep_below(rate), x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def _bits_of_rows(shape: tuple[int, ...], seeds_B: jax.Array) -> jax.Array:
    # Positions are counted within a row; the seed tells the rows apart, wherever in the batch they lie.
    strides = [math.prod(shape[dim + 1 :]) for dim in range(1, len(shape))]
    position = sum(
        jax.lax.broadcasted_iota(jnp.int32, shape, dim) * stride for dim, stride in enumerate(strides, start=1)
    )
    return random_bits(jnp.asarray(position), seeds_B.reshape(-1, *(1,) * (len(shape) - 1)))


def _signed(constant: int) -> jax.Array:
    return jnp.asarray(constant - 2**32 if constant >= 2**31 else constant, jnp.int32)
