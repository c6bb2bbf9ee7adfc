"""Two optimizers: which parameters are whose, what each is set to, and their state."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import optax

from electra_flax.config.architecture import Architecture
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.config.schema import Config
from electra_flax.training.optimizers import make_optimizer
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


def settings_of(config: OptimizerConfig) -> Sides:
    """Return each model's settings."""
    rate, warmup = config.generator_learning_rate, config.generator_warmup_steps
    generator = dataclasses.replace(
        config,
        learning_rate=config.learning_rate if rate is None else rate,
        warmup_steps=config.warmup_steps if warmup is None else warmup,
    )
    return Sides(generator, config)


def optimizers_of(config: Config) -> Sides:
    """Return each model's optimizer."""
    return Sides(*(make_optimizer(each, config.training.num_steps) for each in settings_of(config.optimizer)))


def init_optimizers(config: Config, params: Params) -> dict[str, optax.OptState]:
    """Return the state of both, by SIDES."""
    sides = split(config.architecture, params)
    return {side: getattr(optimizers_of(config), side).init(getattr(sides, side)) for side in SIDES}
