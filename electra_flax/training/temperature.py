"""By what the generator's logits are divided before sampling, a step at a time (Dong et al. 2024, Fast-ELECTRA)."""

import jax
import jax.numpy as jnp

from electra_flax.config.objective import ObjectiveConfig


def temperature_at(objective: ObjectiveConfig, num_steps: int, step: jax.Array | None) -> float | jax.Array:
    """Return the temperature of a step, that of the end without a step: what evaluations sample with."""
    end, start = objective.temperature, objective.initial_temperature
    if step is None or objective.temperature_schedule == "constant":
        return end
    done = step.astype(jnp.float32) / num_steps
    if objective.temperature_schedule == "linear":
        return start + (end - start) * done
    return end + (start - end) * jnp.exp(-done / objective.temperature_tau)
