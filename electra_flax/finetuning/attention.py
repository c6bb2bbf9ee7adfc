"""Which attention a fine-tuning uses: its batches have several lengths, some of which the kernel takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from electra_flax.config.architecture import Architecture
from electra_flax.finetuning.batches import padded_lengths
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.attention_kernel import supports


def choose_by_length(architecture: Architecture, mesh: Mesh, longest: int) -> Attend:
    """Return what pretraining would choose for an encoder of each length to which batches are padded.

    As there, all processes must ask at the same time.
    """
    head_size = architecture.model.hidden_size // architecture.model.num_attention_heads
    lengths = [length for length in padded_lengths(longest) if supports(length, head_size)]
    encoder = dataclasses.replace(architecture, generator=None)  # the generator takes no part
    return by_length({length: choose_attention(encoder, length, mesh) for length in lengths})


def by_length(choices: Mapping[int, Attend]) -> Attend:
    """Return each of them for queries of its length, plain attention for others."""

    def attend(query_BTD: jax.Array, *given: Any, **options: Any) -> jax.Array:
        return choices.get(query_BTD.shape[1], xla_attention)(query_BTD, *given, **options)

    return attend
