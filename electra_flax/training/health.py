"""Whether states still tell tokens and texts apart, on held-out text: nothing is hidden, nothing dropped.

Array names: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from electra_flax.config.architecture import Architecture
from electra_flax.model import electra
from electra_flax.model.attention import Attend
from electra_flax.model.sharding import batch_sharding, whole
from electra_flax.training.metrics import MetricSums
from electra_flax.trees import Batch, Params

States = dict[str, jax.Array]
"""Of a batch, float32: tokens (how many), sum_D and centred_squares of their states, means_BD over each row's tokens (0
of an empty row)."""
ReadStates = Callable[[Params, Batch], States]

LEAST_ROWS = 256
"""On which states are measured, where so many are held out: their mean cosine is then known to about 0.01."""


def make_read_states(architecture: Architecture, mesh: Mesh, attend: Attend) -> ReadStates:
    """Return (params, batch) -> the encoder's states in short, which every process can read; compiled."""

    def read_states(params: Params, batch: Batch) -> States:
        mask_BT = batch["attention_mask"]
        hidden_BTD = electra.apply_encoder(
            architecture, params, batch["input_ids"], mask_BT, batch["token_type_ids"], attend=attend
        ).astype(jnp.float32)
        is_token_BT1 = (mask_BT > 0)[..., None]

        def total(values_BTD: jax.Array) -> jax.Array:
            return jnp.where(is_token_BT1, values_BTD, 0.0)

        tokens_B = is_token_BT1.sum(axis=(1, 2)).astype(jnp.float32)
        sum_BD = total(hidden_BTD).sum(axis=1)
        sum_D, tokens = sum_BD.sum(axis=0), tokens_B.sum()
        # Around their mean: a spread of a thousandth of it would be lost in float32.
        centred_BTD = hidden_BTD - (sum_D / jnp.maximum(tokens, 1.0))[None, None]
        return {
            "tokens": tokens,
            "sum_D": sum_D,
            "centred_squares": total(centred_BTD**2).sum(),
            "means_BD": sum_BD / jnp.maximum(tokens_B, 1.0)[:, None],
        }

    return jax.jit(read_states, in_shardings=(None, batch_sharding(mesh)), out_shardings=whole(mesh))


def state_sums(read_states: ReadStates, params: Params, batches: Iterable[Batch]) -> MetricSums:
    """Return what the health metrics are computed from, whatever batches the rows come in."""
    sums = MetricSums()
    for batch in batches:
        sums.add(_sums_of({name: np.asarray(value, np.float64) for name, value in read_states(params, batch).items()}))
    return sums


def _sums_of(states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    length_B = np.linalg.norm(states["means_BD"], axis=1)
    units_BD = states["means_BD"][length_B > 0] / length_B[length_B > 0, None]
    sum_D, tokens = states["sum_D"], states["tokens"]
    return {
        "state_tokens": tokens,
        "state_sum": sum_D,
        "state_squares": states["centred_squares"] + sum_D @ sum_D / np.maximum(tokens, 1.0),
        "sequences": np.float64(len(units_BD)),
        "sequence_units": units_BD.sum(axis=0),
    }
