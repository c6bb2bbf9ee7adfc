"""Generator and discriminator with shared embeddings, and the seam to the rest: init and the apply functions.

Only this module, `layers` and `heads` import Flax Linen; everyone else sees a nested dict of float32 arrays:

    electra/{embeddings, embeddings_project, encoder}        the discriminator's transformer, and the shared tables
    generator/{embeddings, embeddings_project, encoder}      the generator's, as far as it is its own
    discriminator_delta                                      what the discriminator adds to the tables, where it does
    generator_predictions/{dense, LayerNorm}, generator_lm_head/bias
    generator_ltr/..., generator_rtl/...                     instead of the generator's where it is two towers
    cloze_predictions/{dense, LayerNorm}, cloze_lm_head/bias
    discriminator_predictions/{dense, dense_prediction}
    corrective_lm_head/bias                                  only while a discriminator that guesses too is trained
    contrast_predictions/{dense, LayerNorm}                  only while one that tells sequences apart is trained

Sharing follows docs/semantics.md, section 9.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from electra_flax.config.architecture import Architecture
from electra_flax.model import layers
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.cloze import neighbours
from electra_flax.model.products import dot_rows
from electra_flax.trees import Params, flat

_CONTRAST_WIDTH = 768
"""Of the vectors by which sequences are told apart, whatever the model's width (COCO-LM's code)."""


class Segments(NamedTuple):
    """What tells the examples of a row apart, both int32 [B, T]."""

    segments_BT: jax.Array
    """Which of the row's examples a token is of, from 1 on; 0 at padding."""
    places_BT: jax.Array
    """Which of its example's tokens it is, from 0 on."""


class Cloze(NamedTuple):
    """What two towers make of a text, float32."""

    nll: jax.Array
    """The weighted sum of -log q over its tokens."""
    log_q_BT: jax.Array
    """Of each of its tokens, given all others; without gradient."""
    logits_BMV: jax.Array
    """At the given positions; without gradient."""


class Told(NamedTuple):
    """What a discriminator says of a text, with all heads that it is trained with."""

    logits_BT: jax.Array
    """float32."""
    guesses_BMV: jax.Array | None
    """Of what stood at the given positions, float32, where it guesses."""
    views_BC: jax.Array | None
    """A vector a sequence, in compute_dtype, where it tells sequences apart."""


class _Electra(nn.Module):
    architecture: Architecture
    attend: Attend = xla_attention

    def setup(self) -> None:
        architecture = self.architecture
        dtype: DTypeLike = jnp.dtype(architecture.compute_dtype)
        self.electra = layers.Transformer(architecture.model, dtype, self.attend)
        if architecture.has_delta:
            self.discriminator_delta = layers.Embeddings(architecture.model, dtype, is_difference=True)
        if architecture.has_two_towers:
            sizes, attend = architecture.generator_sizes, self.attend
            left, right = (cast(Attend, functools.partial(attend, sight=sight)) for sight in ("left", "right"))
            self.generator_ltr = layers.Transformer(sizes, dtype, left)
            self.generator_rtl = layers.Transformer(sizes, dtype, right)
            self.cloze_predictions = layers.GeneratorPredictions(sizes, dtype)
            self.cloze_lm_head = layers.TiedLmHead(sizes, dtype)
        elif architecture.generator is not None:
            self.generator = layers.Transformer(architecture.generator, dtype, self.attend)
        if architecture.has_generator_head and not architecture.has_two_towers:
            self.generator_predictions = layers.GeneratorPredictions(architecture.generator_sizes, dtype)
            self.generator_lm_head = layers.TiedLmHead(architecture.generator_sizes, dtype)
        if architecture.has_discriminator_head:
            self.discriminator_predictions = layers.DiscriminatorPredictions(architecture.model, dtype)
        if architecture.has_corrective_head:
            self.corrective_lm_head = layers.TiedLmHead(architecture.model, dtype)
        if architecture.has_contrast_head:  # dense, GELU, LayerNorm, as below the generator's
            sizes = replace(architecture.model, embedding_size=_CONTRAST_WIDTH)
            self.contrast_predictions = layers.GeneratorPredictions(sizes, dtype)

    def generate(
        self,
        input_ids_BT: jax.Array,
        attention_mask_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        positions_BM: jax.Array,
        seeds_B: jax.Array | None,
        places_BT: jax.Array | None = None,
    ) -> jax.Array:
        if not self.architecture.has_generator_head:
            return jnp.zeros((*positions_BM.shape, self.architecture.model.vocab_size), jnp.float32)
        transformer = self.electra if self.architecture.generator is None else self.generator
        embeddings = (transformer if self.architecture.has_own_embeddings else self.electra).embeddings
        rate = transformer.config.hidden_dropout_prob
        embedded_BTE = embeddings(input_ids_BT, token_type_ids_BT, rate, layers.fold_in(seeds_B, 0), places_BT)
        hidden_BTD = transformer(embedded_BTE, attention_mask_BT, layers.fold_in(seeds_B, 1))
        # Before the head: its product with the vocabulary is the largest of the model, and M a seventh of T.
        hidden_BMD = jnp.take_along_axis(hidden_BTD, positions_BM[..., None], axis=1)
        table_VE = embeddings.word_embeddings.embedding
        return self.generator_lm_head(self.generator_predictions(hidden_BMD), table_VE)

    def read_both_ways(
        self,
        input_ids_BT: jax.Array,
        attention_mask_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        weights_BT: jax.Array,
        positions_BM: jax.Array,
        seeds_B: jax.Array | None,
        places_BT: jax.Array | None = None,
    ) -> Cloze:
        """Return what each token is guessed to be from its left and its right, but not from itself."""

        def states(tower: layers.Transformer, number: int) -> jax.Array:
            embeddings = (tower if self.architecture.has_own_embeddings else self.electra).embeddings
            rate = tower.config.hidden_dropout_prob
            embedded_BTE = embeddings(input_ids_BT, token_type_ids_BT, rate, layers.fold_in(seeds_B, number), places_BT)
            hidden_BTD: jax.Array = tower(embedded_BTE, attention_mask_BT, layers.fold_in(seeds_B, number + 1))
            return hidden_BTD

        left_BTD = neighbours(states(self.generator_ltr, 0), "left", attention_mask_BT, places_BT)
        right_BTD = neighbours(states(self.generator_rtl, 4), "right", attention_mask_BT, places_BT)
        x_BTE = self.cloze_predictions(jnp.concatenate([left_BTD, right_BTD], axis=-1))
        owner = self.generator_ltr if self.architecture.has_own_embeddings else self.electra
        table_VE = owner.embeddings.word_embeddings.embedding
        nll, log_q_BT = self.cloze_lm_head.nll(x_BTE, table_VE, input_ids_BT, weights_BT)
        x_BME = jnp.take_along_axis(x_BTE, positions_BM[..., None], axis=1)
        logits_BMV = self.cloze_lm_head(x_BME, table_VE)
        return Cloze(nll, jax.lax.stop_gradient(log_q_BT), jax.lax.stop_gradient(logits_BMV))

    def encode(
        self,
        input_ids_BT: jax.Array,
        attention_mask_BT: jax.Array,
        token_type_ids_BT: jax.Array,
        seeds_B: jax.Array | None,
        places_BT: jax.Array | None = None,
    ) -> jax.Array:
        rate, seeds_of_embeddings_B = self.electra.config.hidden_dropout_prob, layers.fold_in(seeds_B, 2)
        arguments = (input_ids_BT, token_type_ids_BT, rate, seeds_of_embeddings_B, places_BT)
        if self.architecture.has_delta:  # the tables are the generator's (DeBERTaV3, He et al. 2023, section 3.3)
            embedded_BTE = self.discriminator_delta(*arguments, self.electra.embeddings.tables())
        else:
            embedded_BTE = self.electra.embeddings(*arguments)
        hidden_BTD: jax.Array = self.electra(embedded_BTE, attention_mask_BT, layers.fold_in(seeds_B, 3))
        return hidden_BTD

    def discriminate(self, *inputs: Any) -> jax.Array:
        """Return logits_BT for the inputs of `encode`."""
        return self.discriminator_predictions(self.encode(*inputs))

    def tell(self, positions_BM: jax.Array, *inputs: Any) -> Told:
        """Return logits_BT as `discriminate` does, and what the other heads say."""
        hidden_BTD, architecture = self.encode(*inputs), self.architecture
        return Told(
            self.discriminator_predictions(hidden_BTD),
            self._correct(hidden_BTD, positions_BM) if architecture.has_corrective_head else None,
            self.contrast_predictions(hidden_BTD[:, 0]) if architecture.has_contrast_head else None,
        )

    def view(self, *inputs: Any) -> jax.Array:
        """Return views_BC as `tell` does: from the state of [CLS] (Meng et al. 2021, section 3.2)."""
        views_BC: jax.Array = self.contrast_predictions(self.encode(*inputs)[:, 0])
        return views_BC

    def _correct(self, hidden_BTD: jax.Array, positions_BM: jax.Array) -> jax.Array:
        """Return logits_BMV of what stood at the positions.

        COCO-LM's head (Meng et al. 2021, section 3.1): the states times the embeddings that the transformer reads, and
        a bias. Where these are projected, the projection is part of them.
        """
        x_BME = jnp.take_along_axis(hidden_BTD, positions_BM[..., None], axis=1)
        if self.architecture.model.embedding_size != self.architecture.model.hidden_size:
            x_BME = dot_rows(x_BME, self.electra.embeddings_project.variables["params"]["kernel"], contracted=1)
        tables = self.electra.embeddings.tables()
        if self.architecture.has_delta:
            tables = self.discriminator_delta.tables(tables)
        logits_BMV: jax.Array = self.corrective_lm_head(x_BME, tables.word_VE)
        return logits_BMV

    def __call__(self, input_ids_BT: jax.Array) -> None:
        """Touch every parameter, for init."""
        if self.architecture.has_two_towers:
            self.read_both_ways(*(input_ids_BT,) * 4, input_ids_BT[:, :1], None)
        else:
            self.generate(input_ids_BT, input_ids_BT, input_ids_BT, input_ids_BT[:, :1], None)
        if self.architecture.has_discriminator_head:
            self.tell(input_ids_BT[:, :1], input_ids_BT, input_ids_BT, input_ids_BT, None)


def init(architecture: Architecture, key: jax.Array) -> Params:
    """Return fresh float32 parameters (docs/semantics.md, section 8: truncated normal; two Glorot uniform kernels)."""
    params = _init_all(architecture, key)
    return {name: tree for name, tree in params.items() if not _is_given(architecture, name)}


def _init_all(architecture: Architecture, key: jax.Array) -> Params:
    params: Params = _Electra(architecture).init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    return params


def _is_given(architecture: Architecture, name: str) -> bool:
    return architecture.has_frozen_generator and name.startswith("generator")


def given_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape, by name, of every array that a frozen generator has: given beside the parameters, to be used
    with them as one tree."""
    shapes = jax.eval_shape(lambda: _init_all(architecture, jax.random.key(0)))
    return {name: leaf.shape for name, leaf in flat(shapes).items() if _is_given(architecture, name)}


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, by name."""
    params = jax.eval_shape(lambda: init(architecture, jax.random.key(0)))
    return {name: leaf.shape for name, leaf in flat(params).items()}


def _of_rows(
    attend: Attend, attention_mask_BT: jax.Array, packed: Segments | None
) -> tuple[Attend, jax.Array, jax.Array | None]:
    """Return attention, its mask and the tokens' positions; None: as they lie in the row."""
    if packed is None:
        return attend, attention_mask_BT, None
    return cast(Attend, functools.partial(attend, is_packed=True)), packed.segments_BT, packed.places_BT


def apply_generator(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    positions_BM: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
    packed: Segments | None = None,
) -> jax.Array:
    """Return masked-LM logits_BMV float32 at the given positions; no dropout without seeds."""
    attend, mask_BT, places_BT = _of_rows(attend, attention_mask_BT, packed)
    logits_BMV = _Electra(architecture, attend).apply(
        {"params": params}, input_ids_BT, mask_BT, token_type_ids_BT, positions_BM, seeds_B, places_BT,
        method="generate",
    )  # fmt: skip
    return cast(jax.Array, logits_BMV)


def apply_towers(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    weights_BT: jax.Array,
    positions_BM: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
    packed: Segments | None = None,
) -> Cloze:
    """Return what two towers make of a text of which nothing is hidden; no dropout without seeds.

    Tokens have weights_BT in its nll, float32.
    """
    attend, mask_BT, places_BT = _of_rows(attend, attention_mask_BT, packed)
    found = _Electra(architecture, attend).apply(
        {"params": params}, input_ids_BT, mask_BT, token_type_ids_BT, weights_BT, positions_BM, seeds_B, places_BT,
        method="read_both_ways",
    )  # fmt: skip
    return cast(Cloze, found)


def apply_discriminator(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
    packed: Segments | None = None,
) -> jax.Array:
    """Return replaced-token logits_BT float32; no dropout without seeds."""
    attend, mask_BT, places_BT = _of_rows(attend, attention_mask_BT, packed)
    logits_BT = _Electra(architecture, attend).apply(
        {"params": params}, input_ids_BT, mask_BT, token_type_ids_BT, seeds_B, places_BT, method="discriminate"
    )
    return cast(jax.Array, logits_BT)


def apply_all_heads(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    positions_BM: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
    packed: Segments | None = None,
) -> Told:
    """Return logits_BT of apply_discriminator, and what the heads say that a run may add; no dropout without seeds."""
    attend, mask_BT, places_BT = _of_rows(attend, attention_mask_BT, packed)
    told = _Electra(architecture, attend).apply(
        {"params": params}, positions_BM, input_ids_BT, mask_BT, token_type_ids_BT, seeds_B, places_BT, method="tell"
    )
    return cast(Told, told)


def apply_view(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
) -> jax.Array:
    """Return views_BC alone, of rows of one sequence each; no dropout without seeds."""
    views_BC = _Electra(architecture, attend).apply(
        {"params": params}, input_ids_BT, attention_mask_BT, token_type_ids_BT, seeds_B, method="view"
    )
    return cast(jax.Array, views_BC)


def apply_encoder(
    architecture: Architecture,
    params: Params,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
    seeds_B: jax.Array | None = None,
    attend: Attend = xla_attention,
) -> jax.Array:
    """Return hidden_BTD of the discriminator's last layer, in compute_dtype, for a head of fine-tuning.

    No dropout without seeds.
    """
    hidden_BTD = _Electra(architecture, attend).apply(
        {"params": params}, input_ids_BT, attention_mask_BT, token_type_ids_BT, seeds_B, method="encode"
    )
    return cast(jax.Array, hidden_BTD)


def apply_with_layers(
    architecture: Architecture,
    params: Params,
    part: str,
    input_ids_BT: jax.Array,
    attention_mask_BT: jax.Array,
    token_type_ids_BT: jax.Array,
) -> tuple[list[jax.Array], jax.Array]:
    """Return the first layer's input and each layer's output, [B, T, D], and the logits at all positions.

    Those of the "discriminator" are [B, T], of the "generator" [B, T, V].
    """
    positions_BT = jnp.broadcast_to(jnp.arange(input_ids_BT.shape[1])[None, :], input_ids_BT.shape)
    arguments = [input_ids_BT, attention_mask_BT, token_type_ids_BT]
    if part == "generator":
        arguments.append(positions_BT)
    method = "generate" if part == "generator" else "discriminate"
    output: Any = _Electra(architecture).apply(
        {"params": params}, *arguments, None, method=method, mutable=["intermediates"]
    )
    logits, kept = output
    transformer = "generator" if part == "generator" and architecture.generator is not None else "electra"
    found = kept["intermediates"][transformer]
    return [*found["hidden"], *found["encoder"]["layer"]["hidden"]], logits
