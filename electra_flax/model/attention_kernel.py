"""Attention for TPUs as one Pallas kernel each way: scores, softmax and dropout never leave the core's own memory.

Everything is transposed, tokens along the 128 lanes: a head is [K, T], its scores [S, T]. So nothing is padded (a head
of 64 would fill half of a lane tile), sums over keys are additions of whole registers instead of shuffles across
lanes, and the only transposes left are of [K, S] pieces. The backward pass computes scores and dropout bits again.
Lengths are at most a few hundred, so one head's scores fit whole and no running softmax is needed.

docs/performance.md has the schedules behind these choices; docs/plan.md says how they are read.

Array names: B batch, T tokens, S tokens attended to, H heads, K head size, D = H * K hidden.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from electra_flax.model import randomness
from electra_flax.model.attention import MASK_BIAS, Attend, Sight, mask_bias
from electra_flax.model.sharding import BATCH_SPEC

_LOG2_E = math.log2(math.e)  # the hardware's exponential is 2^x
_COMPILER = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))  # two cores of a v4 share the rows
_LANES, _SUBLANES = 128, 8
# Of keys that are masked where a token may see none that is not: as many bits as bfloat16 has, so that what the matrix
# unit adds and what is added to its result are the same, and the token sees all of them alike.
_EXACT_BIAS = -14400.0
PACKED = _SUBLANES
"""Examples of a row that the rows of the bias tell apart."""
# Contracted dimensions of a matrix product. The left side is never contracted over its rows: where its transpose is
# needed it is written out, of a [K, S] piece and never of a [S, T] one.
_NN, _NT = ((1,), (0,)), ((1,), (1,))


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is fixed when the kernel is built."""

    num_heads: int
    head_size: int
    tokens: int
    rate: float
    """Of dropout; 0 draws no bits."""
    matmul_dtype: DTypeLike
    """Of the operands of matrix products: v2 and v3 kernels take float32 alone (and round it as bfloat16 is)."""
    interpret: bool
    """Run as plain JAX, dropout bits from randomness.random_bits instead of the core's own generator."""
    is_packed: bool = False
    """Rows hold several examples, at most PACKED of them (attention.Attend)."""
    sight: Sight = "all"
    """What a token attends to (attention.Attend)."""

    @property
    def names(self) -> tuple[str, str]:
        """Return what the kernels of both directions are called in a compiled program."""
        side = "" if self.sight == "all" else f"_{self.sight}"
        return f"electra_attention_forward{side}", f"electra_attention_backward{side}"

    @property
    def heads_per_step(self) -> int:
        """Return enough heads to hide a grid step's start, not so many that their scores overflow the core's memory."""
        fitting = [
            number
            for number in range(1, self.num_heads + 1)
            if self.num_heads % number == 0 and number * self.tokens <= 1024 and number * self.head_size <= 512
        ]
        return max(fitting, default=1)


def supports(tokens: int, head_size: int) -> bool:
    """Return whether the kernel takes these shapes: whole tiles, and one head's scores within the core's memory."""
    # Heads begin at whole registers, which hold 2 * _SUBLANES rows of bfloat16.
    return tokens % _LANES == 0 and tokens <= 512 and head_size % (2 * _SUBLANES) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_local(
    spec: Spec,
    query_BDT: jax.Array,
    key_BDS: jax.Array,
    value_BDS: jax.Array,
    attention_mask_BS: jax.Array,
    seeds_B: jax.Array,
    first_head_1: jax.Array,
) -> jax.Array:
    """Return context_BDT of one device's rows and heads, the first of which is number first_head_1 (int32) of all."""
    return _forward(spec, query_BDT, key_BDS, value_BDS, attention_mask_BS, seeds_B, first_head_1)[0]


def _forward(spec: Spec, *inputs: jax.Array) -> tuple[jax.Array, Any]:
    query_BDT, key_BDS, value_BDS, attention_mask_BS, seeds_B, first_head_1 = inputs
    grid, heads, bias, statistics = _blocks(spec, query_BDT.shape[0])
    context_BDT, statistic = pl.pallas_call(
        functools.partial(_forward_kernel, spec),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=[bias, heads, heads, heads], out_specs=[heads, statistics]
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query_BDT.shape, query_BDT.dtype),
            jax.ShapeDtypeStruct((*grid, spec.heads_per_step, spec.tokens), jnp.float32),
        ],
        compiler_params=_COMPILER,
        interpret=spec.interpret,
        name=spec.names[0],
    )(seeds_B, first_head_1, _bias_rows(spec, attention_mask_BS), query_BDT, key_BDS, value_BDS)
    return context_BDT, (*inputs, context_BDT, statistic)


def _backward(spec: Spec, saved: Any, context_grad_BDT: jax.Array) -> tuple[jax.Array | None, ...]:
    query_BDT, key_BDS, value_BDS, attention_mask_BS, seeds_B, first_head_1, context_BDT, statistic = saved
    grid, heads, bias, statistics = _blocks(spec, query_BDT.shape[0])
    shape = jax.ShapeDtypeStruct(query_BDT.shape, query_BDT.dtype)
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, spec),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=[bias, *[heads] * 5, statistics], out_specs=[heads] * 3
        ),
        out_shape=[shape] * 3,
        compiler_params=_COMPILER,
        interpret=spec.interpret,
        name=spec.names[1],
    )(
        seeds_B, first_head_1, _bias_rows(spec, attention_mask_BS),
        query_BDT, key_BDS, value_BDS, context_BDT, context_grad_BDT, statistic,
    )  # fmt: skip
    return (*gradients, None, None, None)


attend_local.defvjp(_forward, _backward)


def _bias_rows(spec: Spec, attention_mask_BS: jax.Array) -> jax.Array:
    """Return the mask as extra rows of the keys, met by ones in the queries: the matrix unit adds it at no cost."""
    if spec.is_packed:
        # A row for each example: 0 at its own keys. Its queries have their one there.
        number_1N1 = jnp.arange(1, PACKED + 1)[None, :, None]
        return jnp.where(attention_mask_BS[:, None, :] == number_1N1, 0.0, MASK_BIAS * _LOG2_E)
    # One row says it all; seven of zeros fill the register, so that it can be joined to the keys as it is.
    bias_BS = mask_bias(attention_mask_BS) * _LOG2_E
    if spec.sight != "all":
        bias_BS = jnp.where(attention_mask_BS > 0, 0.0, _EXACT_BIAS)
    return jnp.pad(bias_BS[:, None, :], ((0, 0), (0, _SUBLANES - 1), (0, 0)))


def _blocks(spec: Spec, batch: int) -> tuple[tuple[int, int], pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    # A grid step is `number` heads of one row of the batch. Steps of a row follow each other, so its bias is fetched
    # once; seeds and the first head's number are scalars, which the core has before the first step (prefetch).
    number = spec.heads_per_step
    grid = (batch, spec.num_heads // number)
    heads = pl.BlockSpec((1, number * spec.head_size, spec.tokens), lambda row, step, *_: (row, step, 0))
    bias = pl.BlockSpec((1, _SUBLANES, spec.tokens), lambda row, step, *_: (row, 0, 0))
    statistics = pl.BlockSpec((1, 1, number, spec.tokens), lambda row, step, *_: (row, step, 0, 0))
    return grid, heads, bias, statistics


def _forward_kernel(
    spec: Spec, seeds: Any, first_head: Any, bias: Any, query: Any, key: Any, value: Any, context: Any, statistic: Any
) -> None:
    keep_scale = 1.0 / (1.0 - spec.rate)
    for head in range(spec.heads_per_step):
        rows = slice(head * spec.head_size, (head + 1) * spec.head_size)
        value_KS = value[0, rows, :].astype(jnp.float32)
        score_ST = _scores(spec, bias, query, key, rows)
        maximum_1T = score_ST.max(axis=0, keepdims=True)
        weight_ST = jnp.exp2(score_ST - maximum_1T)
        total_1T = weight_ST.sum(axis=0, keepdims=True)
        if spec.rate:
            weight_ST = jnp.where(_keep(spec, seeds, first_head, head), weight_ST, 0.0)
        # Normalised and scaled after the product, where [K, T] is a fraction of [S, T].
        context_KT = _dot(spec, value_KS, weight_ST, _NN) * (keep_scale / total_1T)
        context[0, rows, :] = context_KT.astype(context.dtype)
        # All that the backward pass needs of the softmax: 2^(score - statistic) is the weight, already normalised.
        statistic[0, 0, head : head + 1, :] = maximum_1T + jnp.log2(total_1T)


def _backward_kernel(
    spec: Spec, seeds: Any, first_head: Any, bias: Any, query: Any, key: Any, value: Any, context: Any,
    context_grad: Any, statistic: Any, query_grad: Any, key_grad: Any, value_grad: Any,
) -> None:  # fmt: skip
    keep_scale = 1.0 / (1.0 - spec.rate)
    for head in range(spec.heads_per_step):
        rows = slice(head * spec.head_size, (head + 1) * spec.head_size)
        query_KT, key_KS, value_KS, context_KT, grad_KT = (
            part[0, rows, :].astype(jnp.float32) for part in (query, key, value, context, context_grad)
        )
        weight_ST = jnp.exp2(_scores(spec, bias, query, key, rows) - statistic[0, 0, head : head + 1, :])
        # The softmax's gradient takes from each weight's gradient their mean, weighed by the weights. With or without
        # dropout that is context . gradient: a sum over K instead of one over S.
        along_1T = (context_KT * grad_KT).sum(axis=0, keepdims=True)
        grad_KT *= keep_scale
        weight_grad_ST = _dot(spec, value_KS.T, grad_KT, _NN)
        dropped_ST = weight_ST
        if spec.rate:
            keep_ST = _keep(spec, seeds, first_head, head)
            dropped_ST = jnp.where(keep_ST, weight_ST, 0.0)
            weight_grad_ST = jnp.where(keep_ST, weight_grad_ST, 0.0)
        value_grad[0, rows, :] = _dot(spec, grad_KT, dropped_ST, _NT).astype(value_grad.dtype)
        # Of scores in natural units, so the products below take queries and keys without the log 2 of `_scores`.
        score_grad_ST = weight_ST * (weight_grad_ST - along_1T)
        scale = 1.0 / math.sqrt(spec.head_size)
        key_grad[0, rows, :] = (_dot(spec, query_KT, score_grad_ST, _NT) * scale).astype(key_grad.dtype)
        query_grad[0, rows, :] = (_dot(spec, key_KS, score_grad_ST, _NN) * scale).astype(query_grad.dtype)


def _scores(spec: Spec, bias: Any, query: Any, key: Any, rows: slice) -> jax.Array:
    """Return scores in units of log 2, mask added, [S, T]."""
    query_KT = query[0, rows, :].astype(jnp.float32) * (_LOG2_E / math.sqrt(spec.head_size))
    # Ones meet the row of the bias. Heads of 64 leave half of the matrix unit's depth of 128 idle: 8 more are free.
    if spec.is_packed:  # queries and keys are the same tokens
        is_met = bias[0] == 0.0
    else:
        is_met = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, spec.tokens), 0) == 0
    key_KS = jnp.concatenate([key[0, rows, :].astype(jnp.float32), bias[0]])
    query_KT = jnp.concatenate([query_KT, is_met.astype(jnp.float32)])
    key_SK = key_KS.T
    score_ST = _dot(spec, key_SK, query_KT, _NN)
    return score_ST if spec.sight == "all" else score_ST + _sight_bias(spec, key_SK[:, spec.head_size :])


def _sight_bias(spec: Spec, bias_SN: jax.Array) -> jax.Array:
    """Return what scores of keys on the other side are lowered by, [S, T], given the extra columns of the keys."""
    key_S1, token_1T = (jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim, shape in
                        enumerate(((spec.tokens, 1), (1, spec.tokens))))  # fmt: skip
    if not spec.is_packed:
        # A key at padding is lowered already: seen from everywhere, it is not lowered twice, as in attention.py.
        visible = jnp.int32(0 if spec.sight == "left" else spec.tokens)
        key_S1 = jnp.where(bias_SN[:, :1] < 0, visible, key_S1)
    is_seen_ST = key_S1 <= token_1T if spec.sight == "left" else key_S1 >= token_1T
    return jnp.where(is_seen_ST, 0.0, _EXACT_BIAS)


def _keep(spec: Spec, seeds: Any, first_head: Any, head: int) -> jax.Array:
    """Return which weights survive dropout, bool [S, T]; the same in both passes."""
    row, step = pl.program_id(0), pl.program_id(1)
    # The head's number among those of all devices, so that none draws what another draws.
    number = first_head[0] + step * spec.heads_per_step + head
    shape = (spec.tokens, spec.tokens)
    if spec.interpret:
        key, token = (jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (0, 1))
        bits = randomness.random_bits((number * spec.tokens + token) * spec.tokens + key, seeds[row])
    else:
        # Seeded anew for each head: the bits do not depend on what the core drew before, so that the backward pass can
        # draw them again instead of reading [S, T] of them.
        pltpu.prng_seed(seeds[row], number)
        bits = pltpu.prng_random_bits(shape)
    return bits < randomness.keep_below(spec.rate)


def _dot(
    spec: Spec, left: jax.Array, right: jax.Array, contracted: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    left, right = left.astype(spec.matmul_dtype), right.astype(spec.matmul_dtype)
    return jax.lax.dot_general(left, right, (contracted, ((), ())), preferred_element_type=jnp.float32)


def kernel_attention(mesh: Mesh, matmul_dtype: DTypeLike, interpret: bool = False) -> Attend:
    """Return the kernel over a mesh: each device computes its rows (data, fsdp) and its heads (tensor)."""

    def attend(
        query_BTD: jax.Array,
        key_BSD: jax.Array,
        value_BSD: jax.Array,
        attention_mask_BS: jax.Array,
        seeds_B: jax.Array | None,
        *,
        num_heads: int,
        rate: float,
        is_packed: bool = False,
        sight: Sight = "all",
    ) -> jax.Array:
        local_heads = num_heads // mesh.shape["tensor"]
        batch, tokens, width = query_BTD.shape
        spec = Spec(
            num_heads=local_heads,
            head_size=width // num_heads,
            tokens=tokens,
            rate=0.0 if seeds_B is None else rate,
            matmul_dtype=matmul_dtype,
            interpret=interpret,
            is_packed=is_packed,
            sight=sight,
        )
        if seeds_B is None:
            seeds_B = jnp.zeros((batch,), jnp.int32)

        def local(*inputs: jax.Array) -> jax.Array:
            first_head_1 = jax.lax.axis_index("tensor").astype(jnp.int32).reshape(1) * local_heads
            result: jax.Array = attend_local(spec, *inputs, first_head_1)
            return result

        rows = BATCH_SPEC[0]
        wide, narrow = PartitionSpec(rows, "tensor", None), PartitionSpec(rows)
        # No check of what varies over which axes: a kernel's results do not say.
        sharded = jax.shard_map(
            local, mesh=mesh, in_specs=(wide, wide, wide, narrow, narrow), out_specs=wide, check_vma=False
        )
        inputs = (x.swapaxes(1, 2) for x in (query_BTD, key_BSD, value_BSD))
        return sharded(*inputs, attention_mask_BS, seeds_B).swapaxes(1, 2)

    return attend
