"""Two optimizers: which parameters are whose, what each is set to, and their state."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from electra_flax.config.architecture import Architecture
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.config.schema import Config
from electra_flax.training.optimizers import Rate, make_optimizer, scheduled
from electra_flax.trees import Params, flat, nested

SIDES = ("generator", "discriminator")


class Sides(NamedTuple):
    """Something of each model."""

    generator: Any
    discriminator: Any


def split(architecture: Architecture, params: Params) -> Sides:
    """Return each model's parameters, which have none in common: the tables are the generator's but in a difference."""
    generators = ("generator", "electra/embeddings/") if architecture.has_delta else ("generator",)
    leaves = flat(params)
    own = {name for name in leaves if name.startswith(generators)}
    return Sides(
        nested({name: leaf for name, leaf in leaves.items() if name in own}),
        nested({name: leaf for name, leaf in leaves.items() if name not in own}),
    )


def join(sides: Sides) -> Params:
    return nested(flat(sides.generator) | flat(sides.discriminator))


def peaks_of(config: OptimizerConfig) -> Sides:
    """Return each model's highest learning rate."""
    given = config.generator_learning_rate
    return Sides(config.learning_rate if given is None else given, config.learning_rate)


def rates_of(config: OptimizerConfig, num_steps: int) -> Sides:
    """Return the Rate of each model."""
    warmup = config.warmup_steps if config.generator_warmup_steps is None else config.generator_warmup_steps

    def rate(peak: float, warmup_steps: int) -> Rate:
        return lambda step: scheduled(step, peak, warmup_steps, config.decay_power, num_steps)

    return Sides(*map(rate, peaks_of(config), (warmup, config.warmup_steps)))


def optimizers_of(config: Config) -> Sides:
    """Return each model's optimizer."""
    settings, num_steps = config.optimizer, config.training.num_steps
    return Sides(*(make_optimizer(settings, num_steps, rate=rate) for rate in rates_of(settings, num_steps)))


def init_optimizers(config: Config, params: Params) -> dict[str, optax.OptState]:
    """Return the state of both, by SIDES."""
    sides = split(config.architecture, params)
    return {side: getattr(optimizers_of(config), side).init(getattr(sides, side)) for side in SIDES}
