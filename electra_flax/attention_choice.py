"""Which attention a run uses: the kernel where it was built for, after it has proved itself on the device at hand.

The kernel is tested in Pallas's interpreter and compiled for every TPU generation, but no test can see the device a
run will find. So a run checks it there, in seconds, and falls back to plain attention with a warning.

Array names: B batch, T tokens, S tokens attended to, H heads, K head size, D = H * K hidden.
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from electra_flax.attention import Attend, mask_bias, xla_attention
from electra_flax.attention_kernel import Spec, attend_local, kernel_attention, supports
from electra_flax.config import Config, ModelConfig
from electra_flax.model import generator_model_config

log = logging.getLogger("electra_flax")

_ROWS = 2
_TOLERANCE = 0.03  # of the largest number: a few roundings to bfloat16


def choose_attention(config: Config, mesh: Mesh, check: bool = True) -> Attend:
    """The kernel on TPUs where shapes allow it and `check` finds it sound; plain attention elsewhere."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu" or not all(_fits(part, config, mesh) for part in _models(config)):
        return xla_attention
    spec = kernel_specs(config, mesh)[0]
    if check and (problem := find_problem(spec)):
        log.warning(
            "the attention kernel is not used on this %s: %s; plain attention is slower", device.device_kind, problem
        )
        return xla_attention
    return kernel_attention(mesh, spec.matmul_dtype)


def kernel_specs(config: Config, mesh: Mesh) -> tuple[Spec, ...]:
    """The kernels that a run on the mesh uses: discriminator's and generator's, where they differ."""
    # Kernels for v2 and v3 cannot multiply bfloat16; float32 operands are rounded the same way there.
    old = mesh.devices.flat[0].device_kind in ("TPU v2", "TPU v3")
    specs = (
        Spec(
            num_heads=model.num_attention_heads // mesh.shape["tensor"],
            head_size=model.hidden_size // model.num_attention_heads,
            tokens=config.data.max_seq_length,
            rate=model.attention_probs_dropout_prob,
            matmul_dtype=jnp.dtype(jnp.float32 if old else config.training.compute_dtype),
            interpret=False,
        )
        for model in _models(config)
    )
    return tuple(dict.fromkeys(specs))


def _models(config: Config) -> tuple[ModelConfig, ...]:
    return config.model, generator_model_config(config)


def _fits(model: ModelConfig, config: Config, mesh: Mesh) -> bool:
    whole_heads = model.num_attention_heads % mesh.shape["tensor"] == 0
    return whole_heads and supports(config.data.max_seq_length, model.hidden_size // model.num_attention_heads)


def find_problem(spec: Spec) -> str | None:
    """Runs the kernel on a small random input: values, gradients and dropout against plain attention.

    Returns what is wrong in a few words, or None. Whatever the kernel raises is such a problem.
    """
    try:
        return _find_problem(spec)
    except Exception as error:  # the compiler's and the runtime's errors share no class
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _find_problem(spec: Spec) -> str | None:
    random = np.random.default_rng(0)
    shape = (_ROWS, spec.num_heads * spec.head_size, spec.tokens)
    query_BDT, key_BDS, value_BDS, grad_BDT = (jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(4))
    length_B = jnp.asarray([spec.tokens, spec.tokens // 2])
    mask_BS = (jnp.arange(spec.tokens)[None, :] < length_B[:, None]).astype(jnp.int32)
    seeds_B, first_head_1 = jnp.asarray([1, 2], jnp.int32), jnp.zeros(1, jnp.int32)

    @jax.jit
    def kernel(query_BDT: jax.Array, key_BDS: jax.Array, value_BDS: jax.Array) -> jax.Array:
        return attend_local(spec, query_BDT, key_BDS, value_BDS, mask_BS, seeds_B, first_head_1)

    # Values that are unit vectors, K at a time, make the output the weights themselves, dropout included.
    kept = []
    for start in range(0, spec.tokens, spec.head_size):
        unit_KS = jnp.eye(spec.head_size, spec.tokens, start)
        part_BDT = kernel(query_BDT, key_BDS, jnp.tile(unit_KS, (_ROWS, spec.num_heads, 1)))
        kept.append(_split(part_BDT, spec)[:, :, : spec.tokens - start] != 0)
    keep_BHST = jnp.concatenate(kept, axis=2)

    def plain(query_BDT: jax.Array, key_BDS: jax.Array, value_BDS: jax.Array) -> jax.Array:
        query, key, value = (_split(x, spec) for x in (query_BDT, key_BDS, value_BDS))
        score_BHST = jnp.einsum("BHKS,BHKT->BHST", key, query, precision="highest") / spec.head_size**0.5
        weight_BHST = jax.nn.softmax(score_BHST + mask_bias(mask_BS)[:, None, :, None], axis=2)
        weight_BHST = jnp.where(keep_BHST, weight_BHST / (1 - spec.rate), 0.0)
        return jnp.einsum("BHKS,BHST->BHKT", value, weight_BHST, precision="highest").reshape(query_BDT.shape)

    ours, ours_vjp = jax.vjp(kernel, query_BDT, key_BDS, value_BDS)
    theirs, theirs_vjp = jax.vjp(plain, query_BDT, key_BDS, value_BDS)
    names = ("values", "gradients of queries", "gradients of keys", "gradients of values")
    pairs = zip((ours, *ours_vjp(grad_BDT)), (theirs, *theirs_vjp(grad_BDT)), strict=True)
    for name, (our, their) in zip(names, pairs, strict=True):
        error = float(jnp.abs(our - their).max() / jnp.abs(their).max())
        if not error <= _TOLERANCE:
            return f"{name} differ from plain attention by {error:.2g} of the largest, allowed {_TOLERANCE}"

    visible_BHST = jnp.broadcast_to(mask_BS[:, None, :, None] == 1, keep_BHST.shape)
    total = int(visible_BHST.sum())
    rate = 1 - int((keep_BHST & visible_BHST).sum()) / total
    if abs(rate - spec.rate) > 5 * (spec.rate / total) ** 0.5:
        return f"dropout zeroes a share of {rate:.4f}, expected {spec.rate}"
    return None


def _split(x_BDT: jax.Array, spec: Spec) -> jax.Array:
    return x_BDT.reshape(_ROWS, spec.num_heads, spec.head_size, spec.tokens)
