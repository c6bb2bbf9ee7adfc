"""Which attention a run uses: the kernel where it was built for, after it has proved itself on the devices at hand.

The kernel is tested in Pallas's interpreter and compiled for every TPU generation, but no test can see the device a
run will find. So each process checks it there, in seconds, in every form that the run will ask for; where one process
finds it wrong, all of them fall back to plain attention with a warning: a run is one program.

Array names: B batch, T tokens, S tokens attended to, H heads, K head size, D = H * K hidden.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.model.attention import Attend, Sight, mask_bias, segment_bias, sight_bias, xla_attention
from electra_flax.model.attention_kernel import PACKED, Spec, attend_local, kernel_attention, supports
from electra_flax.runtime import processes

log = logging.getLogger("electra_flax")

_ROWS = 2
_TOLERANCE = 0.03  # of the largest number: a few roundings to bfloat16


def choose_attention(
    architecture: Architecture, tokens: int, mesh: Mesh, check: bool = True, is_packed: bool = False
) -> Attend:
    """Return the kernel where it takes rows of so many tokens and `check` finds it sound in all processes.

    What trains on packed rows (`is_packed`) is evaluated on examples in rows of their own: both forms are checked.

    Plain attention elsewhere, and on all that is no TPU.

    All processes must ask at the same time, and get the same answer.
    """
    if not _has_kernel(architecture, tokens, mesh):
        return xla_attention
    if check and (problem := processes.first_problem(_problem_here(architecture, tokens, mesh, is_packed))):
        if processes.is_main():
            log.warning(
                "attention kernel disabled on this %s: %s; using plain attention, which is slower",
                mesh.devices.flat[0].device_kind,
                problem,
            )
        return xla_attention
    spec = kernel_specs(architecture, tokens, mesh, is_packed)[0]
    return kernel_attention(mesh, spec.matmul_dtype, spec.interpret)


def _has_kernel(architecture: Architecture, tokens: int, mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "tpu" and all(
        _fits(model, tokens, mesh) for model, _ in _models(architecture)
    )


def _problem_here(architecture: Architecture, tokens: int, mesh: Mesh, is_packed: bool) -> str:
    """Return the first thing wrong with the kernel on this process's device, in training or evaluation, or ""."""
    # Evaluation is the same kernel without dropout, which the compiler sees as another program.
    for trained in kernel_specs(architecture, tokens, mesh, is_packed):
        for spec in dict.fromkeys((trained, dataclasses.replace(trained, rate=0.0, is_packed=False))):
            num_heads = spec.num_heads * mesh.shape["tensor"]
            if problem := find_problem(spec, architecture.compute_dtype, num_heads):
                packed = " of packed rows" if spec.is_packed else ""
                packed += "" if spec.sight == "all" else f" of which each sees those to its {spec.sight}"
                return (
                    f"with {num_heads} heads of {spec.head_size}, {spec.tokens} tokens{packed} and dropout "
                    f"{spec.rate:g} in {architecture.compute_dtype}, {problem}"
                )
    return ""


def kernel_specs(architecture: Architecture, tokens: int, mesh: Mesh, is_packed: bool = False) -> tuple[Spec, ...]:
    """Return the kernels that training on the mesh uses: discriminator's and generator's, where they differ."""
    # Kernels for v2 and v3 cannot multiply bfloat16; float32 operands are rounded the same way there.
    device = mesh.devices.flat[0]
    old = device.device_kind in ("TPU v2", "TPU v3")
    specs = (
        Spec(
            sight=sight,
            num_heads=model.num_attention_heads // mesh.shape["tensor"],
            head_size=model.hidden_size // model.num_attention_heads,
            tokens=tokens,
            rate=model.attention_probs_dropout_prob,
            matmul_dtype=jnp.dtype(jnp.float32 if old else architecture.compute_dtype),
            interpret=device.platform != "tpu",
            is_packed=is_packed,
        )
        for model, sight in _models(architecture)
    )
    return tuple(dict.fromkeys(specs))


def _models(architecture: Architecture) -> tuple[tuple[ModelConfig, Sight], ...]:
    generator = architecture.generator_sizes
    if architecture.has_two_towers:
        return (architecture.model, "all"), (generator, "left"), (generator, "right")
    return (architecture.model, "all"), (generator, "all")


def _fits(model: ModelConfig, tokens: int, mesh: Mesh) -> bool:
    whole_heads = model.num_attention_heads % mesh.shape["tensor"] == 0
    return whole_heads and supports(tokens, model.hidden_size // model.num_attention_heads)


def find_problem(spec: Spec, dtype: DTypeLike, num_heads: int) -> str | None:
    """Run the kernel on a small random input of that type: values, gradients and dropout against plain attention.

    `num_heads` are those of all devices; each device's share of them is checked. Returns what is wrong in a few words,
    or None. Whatever the kernel raises is such a problem.
    """
    try:
        compare = _comparison(spec, dtype)
        kept = []
        for first_head in range(0, num_heads, spec.num_heads):
            problem, keep_BHST = compare(first_head)
            if problem:
                return problem
            kept.append(keep_BHST)
        return _wrong_dropout(spec, np.concatenate(kept, axis=1)) if spec.rate else None
    except Exception as error:  # the compiler's and the runtime's errors share no class
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _comparison(spec: Spec, dtype: DTypeLike) -> Callable[[int], tuple[str | None, np.ndarray]]:
    """Return (a device's first head) -> what is wrong with values or gradients, and weights kept, bool [B, H, S, T]."""
    mask_BS, seeds_B, bias_BST = _mask(spec), jnp.arange(1, 1 + _ROWS, dtype=jnp.int32), _bias(spec)

    @jax.jit
    def kernel(first_head_1: jax.Array, query_BDT: jax.Array, key_BDS: jax.Array, value_BDS: jax.Array) -> jax.Array:
        return attend_local(spec, query_BDT, key_BDS, value_BDS, mask_BS, seeds_B, first_head_1)

    @jax.jit
    def plain(keep_BHST: jax.Array, query_BDT: jax.Array, key_BDS: jax.Array, value_BDS: jax.Array) -> jax.Array:
        query, key, value = (_split(x, spec) for x in (query_BDT, key_BDS, value_BDS))
        score_BHST = jnp.einsum("BHKS,BHKT->BHST", key, query, precision="highest") / spec.head_size**0.5
        weight_BHST = jax.nn.softmax(score_BHST + bias_BST[:, None], axis=2)
        weight_BHST = jnp.where(keep_BHST, weight_BHST / (1 - spec.rate), 0.0)
        return jnp.einsum("BHKS,BHST->BHKT", value, weight_BHST, precision="highest").reshape(query_BDT.shape)

    def compare(first_head: int) -> tuple[str | None, np.ndarray]:
        random = np.random.default_rng(first_head)
        shape = (_ROWS, spec.num_heads * spec.head_size, spec.tokens)
        *inputs, grad_BDT = (jnp.asarray(random.normal(size=shape), dtype) for _ in range(4))
        ours_of = functools.partial(kernel, jnp.full(1, first_head, jnp.int32))
        # Values that are unit vectors, K at a time, make the output the weights themselves, dropout included.
        kept = []
        for start in range(0, spec.tokens, spec.head_size):
            unit_KS = jnp.eye(spec.head_size, spec.tokens, start, dtype)
            part_BDT = ours_of(*inputs[:2], jnp.tile(unit_KS, (_ROWS, spec.num_heads, 1)))
            kept.append(_split(part_BDT, spec)[:, :, : spec.tokens - start] != 0)
        keep_BHST = jnp.concatenate(kept, axis=2)
        ours, ours_vjp = jax.vjp(ours_of, *inputs)
        theirs, theirs_vjp = jax.vjp(functools.partial(plain, keep_BHST), *(x.astype(jnp.float32) for x in inputs))
        pairs = zip((ours, *ours_vjp(grad_BDT)), (theirs, *theirs_vjp(grad_BDT.astype(jnp.float32))), strict=True)
        return _first_difference(pairs), np.asarray(keep_BHST)

    return compare


def _first_difference(pairs: Iterable[tuple[jax.Array, jax.Array]]) -> str | None:
    """Return the first difference from plain attention: of values, or of gradients of queries, keys and values."""
    names = ("values", "gradients of queries", "gradients of keys", "gradients of values")
    for name, (our, their) in zip(names, pairs, strict=True):
        error = float(jnp.abs(our.astype(jnp.float32) - their).max() / jnp.abs(their).max())
        if not error <= _TOLERANCE:
            return f"{name} differ from plain attention by {error:.2g} of the largest, allowed {_TOLERANCE}"
    return None


def _wrong_dropout(spec: Spec, keep_BHST: np.ndarray) -> str | None:
    """Return what is wrong with which weights survive, over all heads: their share, and that no two are the same."""
    visible_BHST = np.broadcast_to(np.asarray(_bias(spec))[:, None] == 0, keep_BHST.shape)
    total = int(visible_BHST.sum())
    rate = 1 - int((keep_BHST & visible_BHST).sum()) / total
    # Five deviations of that many independent draws.
    if abs(rate - spec.rate) > 5 * (spec.rate / total) ** 0.5:
        return f"dropout zeroes a share of {rate:.4f}, expected {spec.rate}"
    seen = keep_BHST[:, :, : spec.tokens // 2]  # by all rows
    heads = seen.reshape(-1, *seen.shape[2:])
    if len({head.tobytes() for head in heads}) < len(heads):
        return "dropout zeroes the same weights in two heads"
    return None


def _mask(spec: Spec) -> jax.Array:
    """Return a mask of which the first row sees all keys, the others half of them.

    Of packed rows: as many examples as a row may have, of different lengths, and two with padding behind them.
    """
    if spec.is_packed:
        place_S = np.arange(spec.tokens) / spec.tokens
        full_S = 1 + (PACKED * place_S**2).astype(np.int32)
        half_S = np.where(place_S < 0.5, 1 + (place_S >= 0.125), 0)
        return jnp.asarray(np.stack([full_S, *[half_S] * (_ROWS - 1)]), jnp.int32)
    length_B = np.where(np.arange(_ROWS) == 0, spec.tokens, spec.tokens // 2)
    return jnp.asarray(np.arange(spec.tokens)[None, :] < length_B[:, None], jnp.int32)


def _bias(spec: Spec) -> jax.Array:
    """Return what that mask adds to scores, [B, S, T], or [B, S, 1] where it is the same for all queries."""
    mask_BS = _mask(spec)
    bias_BST = segment_bias(mask_BS).swapaxes(1, 2) if spec.is_packed else mask_bias(mask_BS)[:, :, None]
    return bias_BST if spec.sight == "all" else jnp.minimum(bias_BST, sight_bias(spec.tokens, spec.sight).T[None])


def _split(x_BDT: jax.Array, spec: Spec) -> jax.Array:
    return x_BDT.reshape(_ROWS, spec.num_heads, spec.head_size, spec.tokens)
