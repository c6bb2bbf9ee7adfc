"""Which texts belong together: COCO-LM's contrast of sequences (Meng et al. 2021, section 3.2).

Two views of a text, read at [CLS]: its corrupted form, and nine tenths of its clean one. Each is to be told from all
others of a group of texts. docs/design.md says where this departs from the released code.

Array names: B batch, T tokens, C width of a view, G groups, N views of a group.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from electra_flax.config.objective import ObjectiveConfig
from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra, randomness
from electra_flax.model.attention import Attend
from electra_flax.model.reductions import argmax_last
from electra_flax.training import losses
from electra_flax.training.losses import Sums
from electra_flax.trees import Batch, Params

_CROP = 6
"""The place in the network of all that is random about crops, beside the numbers in model/electra.py."""


def count(batch: Batch, objective: ObjectiveConfig) -> Sums:
    """Return how many texts the sum below is of; none in steps that learn nothing of it, {} in runs without it."""
    if not objective.contrast_weight:
        return {}
    return {"contrasted": _is_text(batch).sum() if objective.contrasts else jnp.zeros(())}


def sums(
    config: Config, special: SpecialTokens, params: Params, batch: Batch, views_BC: jax.Array, seeds_B: jax.Array,
    attend: Attend, is_training: bool,
) -> Sums:  # fmt: skip
    """Return the sums of the contrast, for the corrupted texts' views and the rows' seeds."""
    # Static: the steps before it is learned and those from then on are two programs (config.schema.Phase.parts).
    if not config.objective.contrasts:
        return {"contrast_nll": jnp.zeros(()), "contrast_correct": jnp.zeros(())}
    seeds_B = randomness.fold_in(seeds_B, _CROP)
    with jax.named_scope("crop"):
        cropped = crop(batch, seeds_B, special)
    others_BC = electra.apply_view(
        config.architecture, params, cropped["input_ids"], cropped["attention_mask"], cropped["token_type_ids"],
        seeds_B if is_training else None, attend,
    )  # fmt: skip
    with jax.named_scope("contrast_loss"):
        return contrast_sums(views_BC, others_BC, _is_text(batch), config.objective.contrast_rows)


def _is_text(batch: Batch) -> jax.Array:
    """Return which rows hold one, float32 [B]: the last batch of an evaluation may be filled up with empty ones."""
    return batch["attention_mask"][:, 0].astype(jnp.float32)


def crop(batch: Batch, seeds_B: jax.Array, special: SpecialTokens) -> Batch:
    """Return floor(0.9 n) consecutive ones of the n tokens between [CLS] and the last [SEP], and these two around them.

    Where they begin is uniform over all places. Token types go along; [SEP] has that of the token whose place it takes.
    """
    ids_BT = batch["input_ids"]
    inner_B = jnp.maximum(batch["attention_mask"].sum(axis=1) - 2, 0)
    kept_B = 9 * inner_B // 10
    places_B = inner_B - kept_B + 1
    start_B = (randomness.uniform_at(jnp.zeros_like(seeds_B), seeds_B) * places_B).astype(jnp.int32)
    start_B = jnp.minimum(start_B, places_B - 1)  # a product with a number just below 1 may be rounded up
    place_1T, kept_B1 = jnp.arange(ids_BT.shape[1])[None], kept_B[:, None]
    is_text_B1 = batch["attention_mask"][:, :1] > 0

    def moved(array_BT: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array_BT, jnp.minimum(place_1T + start_B[:, None], ids_BT.shape[1] - 1), axis=1)

    cropped_BT = jnp.where(place_1T == 0, ids_BT[:, :1], moved(ids_BT))
    cropped_BT = jnp.where(place_1T == kept_B1 + 1, special.sep, cropped_BT)
    types_BT = jnp.where(place_1T == 0, batch["token_type_ids"][:, :1], moved(batch["token_type_ids"]))
    is_inside_BT = (place_1T <= kept_B1 + 1) & is_text_B1
    return {
        "input_ids": jnp.where(is_inside_BT, cropped_BT, special.pad),
        "attention_mask": is_inside_BT.astype(jnp.int32),
        "token_type_ids": jnp.where(is_inside_BT, types_BT, 0),
    }


def contrast_sums(ours_BC: jax.Array, theirs_BC: jax.Array, is_text_B: jax.Array, rows: int) -> Sums:
    """Return what finding each view's partner among its group's costs, and how often it is nearest, float32 sums.

    Groups are `rows` texts after one another. Both directions of a text count one half.
    """
    texts_GR = is_text_B.reshape(-1, rows)
    groups = (len(texts_GR), rows, -1)
    views_GNC = jnp.concatenate([_unit(ours_BC).reshape(groups), _unit(theirs_BC).reshape(groups)], axis=1)
    texts_GN = jnp.concatenate([texts_GR, texts_GR], axis=1)
    similarity_GNN = jnp.einsum("GNC,GMC->GNM", views_GNC, views_GNC, precision="highest")
    number_N = jnp.arange(2 * rows)
    partner_N = (number_N + rows) % (2 * rows)
    # A view is no candidate for itself, nor is that of an empty row; a partner stays one, so that no row has none.
    is_partner_NN = partner_N[:, None] == number_N[None, :]
    is_other_NN = number_N[:, None] != number_N[None, :]
    is_candidate_GNN = is_partner_NN[None] | (is_other_NN[None] & (texts_GN[:, None, :] > 0))
    similarity_GNN = jnp.where(is_candidate_GNN, similarity_GNN, -jnp.inf)
    partner_GN = jnp.broadcast_to(partner_N[None], texts_GN.shape)
    nll_GN = losses.negative_log_likelihood(similarity_GNN, partner_GN)
    return {
        "contrast_nll": 0.5 * (nll_GN * texts_GN).sum(),
        "contrast_correct": 0.5 * ((argmax_last(similarity_GNN) == partner_GN) * texts_GN).sum(),
    }


def _unit(views_BC: jax.Array) -> jax.Array:
    views_BC = views_BC.astype(jnp.float32)
    return views_BC * jax.lax.rsqrt(jnp.maximum(jnp.square(views_BC).sum(axis=-1, keepdims=True), 1e-24))
