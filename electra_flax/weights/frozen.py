"""The weights of a generator that does not learn (generator.frozen), from wherever models are."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from electra_flax.config.architecture import ModelConfig
from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.model.electra import given_shapes
from electra_flax.training.frozen import Frozen
from electra_flax.weights import names
from electra_flax.weights.sources import find_part
from electra_flax.weights.weights import Weights

# What a model computes with it does not depend on.
_OF_TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"}


def read_frozen(config: Config, vocabulary: Vocabulary) -> Frozen | None:
    """Return the generator that a run does not train, None where it has none.

    Raises UserError where there is no generator, or one of other sizes or another vocabulary.
    """
    source = config.generator.frozen
    if source is None:
        return None
    weights = find_part(source, "generator")
    _check(f"generator.frozen={source}", config, weights, vocabulary)
    theirs = names.generator_names(weights.shapes)
    found, digest = {}, hashlib.sha256()
    for name in sorted(given_shapes(config.architecture)):
        value = np.asarray(weights.read(theirs[name.replace("generator/", "electra/", 1)]), np.float32)
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(value).tobytes())
        found[name] = value
    weights.forget()
    return Frozen(found, digest.hexdigest())


def _check(given: str, config: Config, weights: Weights, vocabulary: Vocabulary) -> None:
    expected = config.architecture.generator_sizes
    found = weights.architecture.generator_sizes
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if field.name not in _OF_TRAINING and ours != theirs:
            raise UserError(f"{given}: its {field.name} is {theirs}, {_place(field.name)} {ours}: make them equal")
    if weights.vocabulary is not None and weights.vocabulary.tokens != vocabulary.tokens:
        raise UserError(
            f"{given}: trained with another vocabulary than that of the shards: make shards with "
            f"{weights.vocabulary.path}"
        )


def _place(size: str) -> str:
    own = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if size == "embedding_size":
        return "model.embedding_size (generator.hidden_size with generator.embedding_sharing=separate)"
    return f"generator.{size}" if size in own else f"model.{size}"
