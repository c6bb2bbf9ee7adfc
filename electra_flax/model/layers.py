"""The transformer's Linen modules, named as Hugging Face's Flax ELECTRA names them (docs/semantics.md, section 8).

Array names: B batch, T tokens, S tokens attended to, D hidden, E embedding, H heads, K head size, V vocabulary,
M masked positions, F feed-forward. `dtype` is the type of matrix products and activations; parameters are float32.
Dropout is on where `seeds_B` (randomness.py) is given, one int32 a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform
from jax.typing import DTypeLike

from electra_flax.config.architecture import ModelConfig
from electra_flax.model import randomness
from electra_flax.model.attention import Attend
from electra_flax.model.cloze import cloze_nll, logits_of
from electra_flax.model.gelu import dot_gelu_rows, gelu
from electra_flax.model.products import add_bias, dot_rows, look_up

DotGeneral = Callable[..., jax.Array]


def truncated_normal(config: ModelConfig) -> Initializer:
    """Return TensorFlow's: cut at two deviations and not rescaled, so the real deviation is 0.88 of the parameter."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * config.initializer_range

    return init


def fold_in(seeds_B: jax.Array | None, number: int) -> jax.Array | None:
    return None if seeds_B is None else randomness.fold_in(seeds_B, number)


class Dense(nn.Module):
    """nn.Dense but for what products.py says of gradients; `dot` multiplies."""

    features: int
    dtype: DTypeLike
    kernel_init: Initializer
    dot: DotGeneral = dot_rows

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(self.dot(x.astype(self.dtype), kernel), bias)


def dense(
    features: int, config: ModelConfig, dtype: DTypeLike, name: str = "dense", dot: DotGeneral = dot_rows
) -> Dense:
    """Return a dense layer as all but two are: truncated normal kernel, bias 0."""
    return Dense(features, dtype, truncated_normal(config), dot, name=name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """Normalise the last dimension in float32 with the biased variance; the result has the type of x.

    The gradient is written out: two sums over each row, and x is all that is kept of its size.
    """
    return _layer_norm(x, scale_D, bias_D, epsilon)[0]


def _layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    # Both moments in one pass, which fuses into the product before it; a second pass would read memory again.
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    normed = (wide - mean) * inverse * _as_row(scale_D, x.ndim) + _as_row(bias_D, x.ndim)
    return normed.astype(x.dtype), (x, scale_D, mean, inverse)


def _layer_norm_gradients(epsilon: float, kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale_D, mean, inverse = kept
    normed, grad = (x.astype(jnp.float32) - mean) * inverse, grad.astype(jnp.float32)
    # Normalising takes away from the gradient what would only move the mean or stretch the row: its mean, and its
    # part along the normed row.
    scaled = grad * _as_row(scale_D, x.ndim)
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    x_grad = (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along) * inverse
    rows = tuple(range(x.ndim - 1))
    return x_grad.astype(x.dtype), (grad * normed).sum(axis=rows), grad.sum(axis=rows)


layer_norm.defvjp(_layer_norm, _layer_norm_gradients)


def _as_row(vector_D: jax.Array, num_dims: int) -> jax.Array:
    return vector_D.reshape((1,) * (num_dims - 1) + (-1,))


class LayerNorm(nn.Module):
    """Scale, bias and layer_norm."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.config.layer_norm_eps)


class Tables(NamedTuple):
    """What an embedding is the sum of."""

    word_VE: jax.Array
    position_PE: jax.Array
    token_type_KE: jax.Array
    """A row a token type."""


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised.

    Summed in float32, whatever `dtype` is: a row's gradient is the sum of thousands of tokens' (for a token type, of
    nearly all), of which a bfloat16 would lose most.
    """

    config: ModelConfig
    dtype: DTypeLike
    is_difference: bool = False
    """Whether the tables are added to those of another: 0 at first."""

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.zeros if self.is_difference else truncated_normal(config)

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, config.embedding_size, embedding_init=init, dtype=jnp.float32)

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.LayerNorm = LayerNorm(config)

    def tables(self, of_others: Tables | None = None) -> Tables:
        """Return them; those of a difference are added to the tables `of_others`, which get no gradient."""
        ours = Tables(
            self.word_embeddings.embedding, self.position_embeddings.embedding, self.token_type_embeddings.embedding
        )
        if of_others is None:
            return ours
        return Tables(*(jax.lax.stop_gradient(theirs) + own for theirs, own in zip(of_others, ours, strict=True)))

    def __call__(
        self,
        input_ids_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        rate: float,
        seeds_B: jax.Array | None,
        places_BT: jax.Array | None,
        of_others: Tables | None = None,
    ) -> jax.Array:
        """Return them with dropout at the `rate` of the transformer that reads them, which may share them."""
        tables = self.tables(of_others)
        if places_BT is None:
            position_BTE = tables.position_PE[None, : input_ids_BT.shape[1]]
        else:
            position_BTE = look_up(tables.position_PE, places_BT)
        embedded_BTE = jnp.take(tables.word_VE, input_ids_BT, axis=0) + position_BTE
        # By comparison: the gradient is a plain sum, where that of a lookup has all tokens wait for one row.
        for token_type, row_11E in enumerate(tables.token_type_KE[:, None, None]):
            embedded_BTE += jnp.where(token_type_ids_BT[..., None] == token_type, row_11E, 0.0)
        normed_BTE = self.LayerNorm(embedded_BTE.astype(self.dtype))
        return randomness.dropout(normed_BTE, rate, seeds_B)


class SelfAttention(nn.Module):
    """Projections to queries, keys and values, and attention over them."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        config = self.config

        def project(name: str) -> jax.Array:
            return dense(config.hidden_size, config, self.dtype, name)(hidden_BTD)

        return self.attend(
            project("query"), project("key"), project("value"), attention_mask_BT, seeds_B,
            num_heads=config.num_attention_heads, rate=config.attention_probs_dropout_prob,
        )  # fmt: skip


class Output(nn.Module):
    """Dense, dropout, residual, LayerNorm: the end of both sublayers."""

    config: ModelConfig
    dtype: DTypeLike
    dot: DotGeneral = dot_rows

    @nn.compact
    def __call__(self, x: jax.Array, residual_BTD: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        config = self.config
        x_BTD = dense(config.hidden_size, config, self.dtype, dot=self.dot)(x)
        x_BTD = randomness.dropout(x_BTD, config.hidden_dropout_prob, seeds_B)
        return LayerNorm(config, name="LayerNorm")(x_BTD + residual_BTD)


class Attention(nn.Module):
    """Self-attention sublayer."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        attention = SelfAttention(self.config, self.dtype, self.attend, name="self")
        context_BTD = attention(hidden_BTD, attention_mask_BT, fold_in(seeds_B, 0))
        return Output(self.config, self.dtype, name="output")(context_BTD, hidden_BTD, fold_in(seeds_B, 1))


class Intermediate(nn.Module):
    """The first half of the feed-forward sublayer, up to GELU, which is part of the second half's product."""

    config: ModelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        return dense(self.config.intermediate_size, self.config, self.dtype)(hidden_BTD)


class Layer(nn.Module):
    """One transformer layer, LayerNorm after each residual."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        attention = Attention(self.config, self.dtype, self.attend, name="attention")
        attended_BTD = attention(hidden_BTD, attention_mask_BT, fold_in(seeds_B, 0))
        wide_BTF = Intermediate(self.config, self.dtype, name="intermediate")(attended_BTD)
        return Output(self.config, self.dtype, dot_gelu_rows, name="output")(
            wide_BTF, attended_BTD, fold_in(seeds_B, 1)
        )


class LayerStack(nn.Module):
    """The layers, one after the other. Unrolled: stacking their parameters costs copies on TPU."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        for number in range(self.config.num_hidden_layers):
            layer = Layer(self.config, self.dtype, self.attend, name=str(number))
            hidden_BTD = layer(hidden_BTD, attention_mask_BT, fold_in(seeds_B, number))
            self.sow("intermediates", "hidden", hidden_BTD)  # kept only where asked for
        return hidden_BTD


class Encoder(nn.Module):
    """Exists for its name: Hugging Face's `encoder/layer/0/...`."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        stack = LayerStack(self.config, self.dtype, self.attend, name="layer")
        return stack(hidden_BTD, attention_mask_BT, seeds_B)


class Transformer(nn.Module):
    """Embeddings (used or not), the projection to the hidden size where the sizes differ, and the encoder."""

    config: ModelConfig
    dtype: DTypeLike
    attend: Attend

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config, self.dtype)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = Dense(config.hidden_size, self.dtype, glorot_uniform())
        self.encoder = Encoder(config, self.dtype, self.attend)

    def __call__(self, embedded_BTE: jax.Array, attention_mask_BT: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        different = self.config.embedding_size != self.config.hidden_size
        hidden_BTD = self.embeddings_project(embedded_BTE) if different else embedded_BTE
        self.sow("intermediates", "hidden", hidden_BTD)
        return self.encoder(hidden_BTD, attention_mask_BT, seeds_B)


class GeneratorPredictions(nn.Module):
    """The masked-LM transform, from the width of the hidden states to that of the embedding table in use."""

    config: ModelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden_BMD: jax.Array) -> jax.Array:
        config = self.config
        x_BME = gelu(dense(config.embedding_size, config, self.dtype)(hidden_BMD))
        return LayerNorm(config, name="LayerNorm")(x_BME)


class TiedLmHead(nn.Module):
    """Logits over the vocabulary: the embedding table transposed, and a bias."""

    config: ModelConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))

    def __call__(self, x_BME: jax.Array, table_VE: jax.Array) -> jax.Array:
        return logits_of(x_BME.astype(self.dtype), table_VE, self.bias)

    def nll(
        self, x_BTE: jax.Array, table_VE: jax.Array, ids_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the weighted sum of -log of the probabilities of tokens, and their logarithms (cloze.py)."""
        return cloze_nll(x_BTE.astype(self.dtype), table_VE, self.bias, ids_BT, weights_BT)


class DiscriminatorPredictions(nn.Module):
    """One logit a token, positive for `replaced`."""

    config: ModelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        config = self.config
        x_BTD = gelu(dense(config.hidden_size, config, self.dtype)(hidden_BTD))
        # The last product is one column: float32 costs nothing and keeps the loss exact.
        predict = nn.Dense(1, dtype=jnp.float32, kernel_init=glorot_uniform(), name="dense_prediction")
        return predict(x_BTD)[..., 0]
