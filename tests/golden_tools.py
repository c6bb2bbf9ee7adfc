"""Reads the golden values into our structures."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.config.schema import (
    Config,
    DataConfig,
    GeneratorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra
from electra_flax.trees import tree_names
from electra_flax.weights import names

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def tiny_config(**changes: dict) -> Config:
    """A model small enough to compile in seconds; `changes` replace fields, section by section."""
    config = Config(
        model=ModelConfig(
            vocab_size=300,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        generator=GeneratorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32),
        data=DataConfig(max_seq_length=32),
        training=TrainingConfig(batch_size=16, num_steps=20, compute_dtype="float32"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
    )
    for section, fields in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
    return config


def config_for(architecture: Architecture) -> Config:
    """A run that would train such models."""
    model, generator = architecture.model, architecture.generator_sizes
    own = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dataclasses.replace(
        tiny_config(),
        model=model,
        generator=GeneratorConfig(
            **{name: getattr(generator, name) for name in own},
            untied_generator=architecture.generator is not None,
            untied_generator_embeddings=architecture.has_own_embeddings,
            uniform_generator=not architecture.has_generator_head,
        ),
        objective=ObjectiveConfig(electra_objective=architecture.has_discriminator_head),
        data=DataConfig(max_seq_length=min(32, model.max_position_embeddings)),
    )


def golden_config(hparams: dict) -> Config:
    """The original's hyperparameters as our configuration, dropout off."""
    sizes = hparams["model_hparam_overrides"]
    untied = hparams.get("untied_generator", True)
    width = int(round(sizes["hidden_size"] * hparams["generator_hidden_size"])) if untied else sizes["hidden_size"]
    return Config(
        model=ModelConfig(
            vocab_size=hparams["vocab_size"],
            embedding_size=hparams["embedding_size"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **sizes,
        ),
        generator=GeneratorConfig(
            hidden_size=width,
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=max(1, width // 64) if untied else sizes["num_attention_heads"],
            intermediate_size=4 * width,
            untied_generator=untied,
            untied_generator_embeddings=hparams.get("untied_generator_embeddings", False),
        ),
        data=DataConfig(max_seq_length=hparams["max_seq_length"]),
        training=TrainingConfig(batch_size=8, num_steps=20, compute_dtype="float32"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
    )


def golden_params(config: Config, weights: dict[str, np.ndarray]) -> electra.Params:
    """TF1 weights in our tree; every one of our parameters must be there, with our shape."""
    shapes = jax.eval_shape(lambda: electra.init(config.architecture, jax.random.key(0)))

    def load(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = weights[names.to_tf1(name)]
        assert value.shape == leaf.shape, name
        return jnp.asarray(value)

    return jax.tree.map(load, tree_names(shapes), shapes)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
