"""The discriminator's tables as a difference from the generator's (embedding_sharing=gdes), and as everybody else has
them: written out, with the generator's beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from electra_flax.errors import UserError
from electra_flax.weights.weights import Weights

_TABLES, _DELTA, _OWN = "electra/embeddings/", "discriminator_delta/", "generator/embeddings/"
_NORM = "LayerNorm/"

Read = Callable[[], np.ndarray]


def fold(weights: Weights) -> Weights:
    """Return the same models with two sets of tables; what has no difference as it is."""
    if not weights.architecture.has_delta:
        return weights
    table: dict[str, Read] = {}
    for name in weights.shapes:
        place = name.removeprefix(_DELTA)
        if name.startswith(_TABLES):
            table[name.replace(_TABLES, _OWN)] = partial(weights.read, name)
        elif name == place:
            table[name] = partial(weights.read, name)
        elif place.startswith(_NORM):
            table[_TABLES + place] = partial(weights.read, name)
        else:
            table[_TABLES + place] = partial(_sum, weights, _TABLES + place, name)
    return _of(table, weights, has_delta=False)


def unfold(weights: Weights) -> Weights:
    """Return the same models with the discriminator's tables as a difference, 0 where both models have the same.

    Raises UserError where the two have tables of different widths.
    """
    if weights.architecture.has_delta:
        return weights
    has_own = weights.architecture.has_own_embeddings
    table: dict[str, Read] = {}
    for name in weights.shapes:
        if name.startswith(_OWN):
            continue
        table[name] = partial(weights.read, name)
        if not name.startswith(_TABLES):
            continue
        place = name.removeprefix(_TABLES)
        theirs = _OWN + place if has_own else name
        if weights.shapes[theirs] != weights.shapes[name]:
            raise UserError(
                f"{weights.source}: {name} is {weights.shapes[name]} in the discriminator and "
                f"{weights.shapes[theirs]} in the generator: generator.embedding_sharing=gdes needs equal ones"
            )
        table[name] = partial(weights.read, theirs)
        if place.startswith(_NORM):
            table[_DELTA + place] = partial(weights.read, name)
        else:
            table[_DELTA + place] = partial(_difference, weights, name, theirs)
    return _of(table, weights, has_delta=True)


def _sum(weights: Weights, name: str, difference: str) -> np.ndarray:
    found: np.ndarray = weights.read(name) + weights.read(difference)
    return found


def _difference(weights: Weights, name: str, from_name: str) -> np.ndarray:
    found: np.ndarray = weights.read(name) - weights.read(from_name)
    return found


def _of(table: dict[str, Read], weights: Weights, *, has_delta: bool) -> Weights:
    """Return weights of other names, which have no moments: those of a sum are not the sum of moments."""
    shapes = {
        name: weights.shapes[name if name in weights.shapes else name.replace(_OWN, _TABLES).replace(_DELTA, _TABLES)]
        for name in sorted(table)  # as all weights are: files hold them in this order
    }
    architecture = dataclasses.replace(weights.architecture, has_delta=has_delta, has_own_embeddings=not has_delta)
    return dataclasses.replace(
        weights, architecture=architecture, shapes=shapes, read=lambda name: table[name](), optimizer=None
    )
