"""Which attention a fine-tuning uses: its batches have several lengths, some of which the kernel takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from electra_flax.config.schema import Config, LongPhaseConfig
from electra_flax.finetune.batches import padded_lengths
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.attention_kernel import supports


def choose_by_length(config: Config, mesh: Mesh, longest: int) -> Attend:
    """What pretraining would choose for an encoder of each length to which batches are padded.

    As there, all processes must ask at the same time.
    """
    head_size = config.model.hidden_size // config.model.num_attention_heads
    lengths = [length for length in padded_lengths(longest) if supports(length, head_size)]
    return by_length({length: choose_attention(_encoder_of(config, length), mesh) for length in lengths})


def _encoder_of(config: Config, length: int) -> Config:
    """Without a generator, whose sizes do not matter here."""
    alone = dataclasses.replace(config.generator, uniform_generator=True, untied_generator_embeddings=False)
    data = dataclasses.replace(config.data, max_seq_length=length)
    return dataclasses.replace(config, generator=alone, data=data, long_phase=LongPhaseConfig())


def by_length(choices: Mapping[int, Attend]) -> Attend:
    """Each of them for queries of its length, plain attention for others."""

    def attend(query_BTD: jax.Array, *given: Any, **options: Any) -> jax.Array:
        return choices.get(query_BTD.shape[1], xla_attention)(query_BTD, *given, **options)

    return attend
