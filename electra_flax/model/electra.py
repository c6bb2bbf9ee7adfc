"""Generator and discriminator with shared embeddings, and the seam to the rest: init and the apply functions.

Only this module and `layers` import Flax Linen; everyone else sees a nested dict of float32 arrays:

    electra/{embeddings, embeddings_project, encoder}        the discriminator's transformer, and the shared tables
    generator/{embeddings, embeddings_project, encoder}      the generator's, as far as it is its own
    generator_predictions/{dense, LayerNorm}, generator_lm_head/bias
    discriminator_predictions/{dense, dense_prediction}

Sharing follows docs/semantics.md, section 9.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from electra_flax.config.schema import Config, ModelConfig
from electra_flax.model import layers
from electra_flax.model.attention import Attend, xla_attention

Params = dict[str, Any]


def has_own_generator(config: Config) -> bool:
    """Whether there is a second transformer."""
    return (
        config.objective.electra_objective
        and config.generator.untied_generator
        and not config.generator.uniform_generator
    )


def has_generator_head(config: Config) -> bool:
    """Whether anything predicts masked tokens."""
    return not config.generator.uniform_generator


def generator_model_config(config: Config) -> ModelConfig:
    """The generator as a model of its own; its embedding size is that of the table it uses."""
    if not has_own_generator(config):
        return config.model
    generator = config.generator
    own_embeddings = generator.untied_generator_embeddings
    return dataclasses.replace(
        config.model,
        embedding_size=generator.hidden_size if own_embeddings else config.model.embedding_size,
        hidden_size=generator.hidden_size,
        num_hidden_layers=generator.num_hidden_layers,
        num_attention_heads=generator.num_attention_heads,
        intermediate_size=generator.intermediate_size,
    )


class _Electra(nn.Module):
    config: Config
    attend: Attend = xla_attention

    def setup(self) -> None:
        dtype: DTypeLike = jnp.dtype(self.config.training.compute_dtype)
        generator = generator_model_config(self.config)
        self.electra = layers.Transformer(self.config.model, dtype, self.attend)
        if has_own_generator(self.config):
            self.generator = layers.Transformer(generator, dtype, self.attend)
        if has_generator_head(self.config):
            self.generator_predictions = layers.GeneratorPredictions(generator, dtype)
            self.generator_lm_head = layers.TiedLmHead(generator, dtype)
        if self.config.objective.electra_objective:
            self.discriminator_predictions = layers.DiscriminatorPredictions(self.config.model, dtype)

    def generate(
        self,
        input_ids_BT: jax.Array,
        attention_mask_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        positions_BM: jax.Array,
        seeds_B: jax.Array | None,
    ) -> jax.Array:
        if not has_generator_head(self.config):
            return jnp.zeros((*positions_BM.shape, self.config.model.vocab_size), jnp.float32)
        transformer = self.generator if has_own_generator(self.config) else self.electra
        embeddings = (transformer if self.config.generator.untied_generator_embeddings else self.electra).embeddings
        embedded_BTE = embeddings(input_ids_BT, token_type_ids_BT, layers.fold_in(seeds_B, 0))
        hidden_BTD = transformer(embedded_BTE, attention_mask_BT, layers.fold_in(seeds_B, 1))
        hidden_BMD = jnp.take_along_axis(hidden_BTD, positions_BM[..., None], axis=1)
        table_VE = embeddings.word_embeddings.embedding
        return self.generator_lm_head(self.generator_predictions(hidden_BMD), table_VE)

    def encode(
        self,
        input_ids_BT: jax.Array,
        attention_mask_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        seeds_B: jax.Array | None,
    ) -> jax.Array:
        embedded_BTE = self.electra.embeddings(input_ids_BT, token_type_ids_BT, layers.fold_in(seeds_B, 2))
        hidden_BTD: jax.Array = self.electra(embedded_BTE, attention_mask_BT, layers.fold_in(seeds_B, 3))
        return hidden_BTD

    def discriminate(self, *inputs: Any) -> jax.Array:
        """Of the inputs of `encode`."""
        return self.discriminator_predictions(self.encode(*inputs))

    def __call__(self, input_ids_BT: jax.Array) -> None:
        """Touches every parameter, for init."""
        self.generate(input_ids_BT, input_ids_BT, input_ids_BT, input_ids_BT[:, :1], None)
        if self.config.objective.electra_objective:
            self.discriminate(input_ids_BT, input_ids_BT, input_ids_BT, None)


def init(config: Config, key: jax.Array) -> Params:
    """Fresh float32 parameters (docs/semantics.md, section 8: truncated normal; two Glorot uniform kernels)."""
    return _Electra(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def apply_generator(
    config: Config,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    positions_BM: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
) -> jax.Array:
    """Masked-LM logits_BMV float32 at the given positions; no dropout without seeds."""
    logits: Any = _Electra(config, attend).apply(
        {"params": params}, input_ids_BT, attention_mask_BT, token_type_ids_BT, positions_BM, seeds_B,
        method="generate",
    )  # fmt: skip
    return logits


def apply_discriminator(
    config: Config,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
) -> jax.Array:
    """Replaced-token logits_BT float32; no dropout without seeds."""
    logits: Any = _Electra(config, attend).apply(
        {"params": params}, input_ids_BT, attention_mask_BT, token_type_ids_BT, seeds_B, method="discriminate"
    )
    return logits


def apply_encoder(
    config: Config,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
) -> jax.Array:
    """hidden_BTD of the discriminator's last layer, in compute_dtype, for a head of fine-tuning; no dropout without
    seeds."""
    hidden: Any = _Electra(config, attend).apply(
        {"params": params}, input_ids_BT, attention_mask_BT, token_type_ids_BT, seeds_B, method="encode"
    )
    return hidden


def apply_with_layers(
    config: Config,
    params: Params,
    part: str,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
) -> tuple[list[jax.Array], jax.Array]:
    """Input of the first layer and output of each, [B, T, D], and the logits at all positions, of the "discriminator"
    [B, T] or the "generator" [B, T, V]."""
    positions_BT = jnp.broadcast_to(jnp.arange(input_ids_BT.shape[1])[None, :], input_ids_BT.shape)
    arguments = [input_ids_BT, attention_mask_BT, token_type_ids_BT]
    if part == "generator":
        arguments.append(positions_BT)
    method = "generate" if part == "generator" else "discriminate"
    output: Any = _Electra(config).apply({"params": params}, *arguments, None, method=method, mutable=["intermediates"])
    logits, kept = output
    transformer = "generator" if part == "generator" and has_own_generator(config) else "electra"
    found = kept["intermediates"][transformer]
    return [*found["hidden"], *found["encoder"]["layer"]["hidden"]], logits
