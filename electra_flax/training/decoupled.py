"""A step of two optimizers: the generator moves, then the discriminator learns from what it has become.

After Dong et al. 2023 (PMLR 202:8244): with one optimizer of Adam's kind the losses' weights no longer weigh, because
an update knows no scale. DeBERTaV3 is trained so too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from electra_flax.config.schema import Config
from electra_flax.model.attention import Attend
from electra_flax.training.losses import Sums
from electra_flax.training.objectives.objective import Objective, OfTwoModels, batch_seeds
from electra_flax.training.optimizers.sides import SIDES, Sides, join, optimizers_of, rates_of, split
from electra_flax.training.state import Moved, TrainState, all_finite, keep_where, move, over_slices
from electra_flax.trees import Batch, Params

Advance = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]


def make_advance(config: Config, objective: Objective, attend: Attend) -> Advance:
    """Return (state, batch, key) -> (next state, metric sums); "grad_norm" is the discriminator's.

    A step in which either loss or gradient is not finite moves neither model.
    """
    rates, optimizers = rates_of(config.optimizer, config.training.num_steps), optimizers_of(config)
    slices, together = config.training.gradient_accumulation_steps, objective.rows_together
    phases = _Phases(cast(OfTwoModels, objective), attend)

    def advance(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        draws = objective.draw(batch, batch_seeds(key, batch), state.step)
        counts = objective.count(batch, draws)
        before = split(config.architecture, state.params)
        opt_state = cast(dict[str, optax.OptState], state.opt_state)
        old = Sides(*(Moved(getattr(before, side), opt_state[side]) for side in SIDES))
        of_generator = functools.partial(phases.generator, before, counts)
        (grads, sums), sampled_BM = over_slices(of_generator, (batch, draws), slices, together)
        with jax.named_scope("optimizer"):
            generator, generator_norm = move(optimizers.generator, old.generator, grads), optax.tree.norm(grads)
        between = before._replace(generator=generator.params)
        of_discriminator = functools.partial(phases.discriminator, between, counts)
        (grads, more), _ = over_slices(of_discriminator, (batch, draws, sampled_BM), slices, together)
        sums = sums | more
        with jax.named_scope("optimizer"):
            discriminator, norm = move(optimizers.discriminator, old.discriminator, grads), optax.tree.norm(grads)
            is_finite = all_finite(generator_norm, norm, objective.loss(sums, counts))
            kept = keep_where(is_finite, Sides(generator, discriminator), old)
        how = {
            "grad_norm": norm,
            "generator_grad_norm": generator_norm,
            "generator_learning_rate": rates.generator(state.step),
            "skipped": 1 - is_finite.astype(jnp.float32),
        }
        params = join(Sides(kept.generator.params, kept.discriminator.params))
        opt_state = {side: getattr(kept, side).opt_state for side in SIDES}
        return TrainState(state.step + 1, params, opt_state), sums | counts | how

    return advance


class _Phases(NamedTuple):
    """Gradients of each model's parameters alone, of a slice of the batch, and metric sums."""

    objective: OfTwoModels
    attend: Attend

    def generator(self, params: Sides, counts: Sums, rows: Any) -> tuple[tuple[Params, Sums], jax.Array]:
        """Return them, and what is sampled."""
        batch, draws = rows

        def loss(own: Params) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
            both = join(params._replace(generator=own))
            sums, sampled_BM = self.objective.generate(both, batch, draws, self.attend, is_training=True)
            return self.objective.generator_loss(sums, counts), (sums, sampled_BM)

        grads, (sums, sampled_BM) = jax.grad(loss, has_aux=True)(params.generator)
        return (grads, sums), sampled_BM

    def discriminator(self, params: Sides, counts: Sums, rows: Any) -> tuple[tuple[Params, Sums], tuple[()]]:
        """Return them, for what was sampled."""
        batch, draws, sampled_BM = rows

        def loss(own: Params) -> tuple[jax.Array, Sums]:
            both = join(params._replace(discriminator=own))
            sums = self.objective.discriminator_sums(both, batch, draws, sampled_BM, self.attend, is_training=True)
            return self.objective.discriminator_loss(sums, counts), sums

        return jax.grad(loss, has_aux=True)(params.discriminator), ()
