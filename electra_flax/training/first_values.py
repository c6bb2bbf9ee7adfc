"""First values with which a small model learns from context at once (docs/learning.md).

A model that begins as the original does first learns how often each token occurs, and it has only one place for that:
the word embeddings, which are the output layer too. They grow until nothing is left of the positions beside them, and
for hundreds of steps every head sees a bag of words: the plateau. Three first values, none of which changes what the
model is, take that stage away:

- the generator's output bias is the logarithm of how often each token occurs, so that nothing pulls at the embeddings
  to say it;
- the position table is one of sines and cosines, in which the step to a neighbour is a rotation (Vaswani et al. 2017,
  section 3.5);
- the heads of the first layer ask with that rotation, and so look one token to the left or to the right (queries and
  keys that begin related are the idea of Trockman and Kolter 2023, mimetic initialization), and what they see arrives:
  values and output keep a vector's length, where the original's make a twenty-fifth of it at a width of 128.

Array names: V vocabulary, P positions, E embedding width, D hidden width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.data.shards import ShardedExamples
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.trees import Params

_COUNTED = 20_000  # examples: 2.5 million tokens of 128 say the frequency of all but the rarest
# Amplitude of the sines beside the words' standard deviation: the two weigh about the same in the sum's variance.
_AMPLITUDE = 1.5
# Radians a token, spaced evenly: the fastest differ most between neighbours, and none turns by more than half a circle.
_SLOWEST, _FASTEST = 0.05, 2.5
# Score of the place that a head looks at, in nats above a place far away: a third of the attention in 64 tokens.
_SCORE = 4.0
# Of the places that the heads of a transformer look at in turn: a tower sees one side.
_OFFSETS = {"electra": (-1, 1), "generator": (-1, 1), "generator_ltr": (-1,), "generator_rtl": (1,)}
_CUT_VARIANCE = 0.774  # of a normal distribution that is cut at two standard deviations, as the original's values are


def token_frequency(examples: ShardedExamples, vocab_size: int, special: SpecialTokens) -> np.ndarray:
    """Return how often each token is among those that can be hidden, float64 [V], above 0 for all; the sum is 1."""
    chosen = np.linspace(0, len(examples) - 1, min(len(examples), _COUNTED)).astype(np.int64)
    count_V = np.zeros(vocab_size)
    for some in np.array_split(chosen, math.ceil(len(chosen) / 1000)):
        ids_BT, mask_BT, _ = np.moveaxis(examples.read(some), 1, 0)
        count_V += np.bincount(ids_BT[mask_BT == 1], minlength=vocab_size)
    count_V[[special.cls, special.sep]] = 0
    count_V += 0.1  # a token that was not seen may be seen later
    frequency_V: np.ndarray = count_V / count_V.sum()
    return frequency_V


def look_at_neighbours(architecture: Architecture, frequency_V: np.ndarray, params: Params) -> Params:
    """Return fresh parameters with the first values above; all others are as they were."""
    params = jax.tree.map(lambda leaf: leaf, params)  # dicts of its own
    for head in ("generator_lm_head", "cloze_lm_head"):
        if head in params:
            params[head]["bias"] = jnp.asarray(np.log(frequency_V), jnp.float32)
    for name, offsets in _OFFSETS.items():
        if name not in params:
            continue
        model = architecture.model if name == "electra" else architecture.generator_sizes
        transformer = params[name]
        if "embeddings" in transformer:
            table_PE = _AMPLITUDE * model.initializer_range * _sines(model)
            transformer["embeddings"]["position_embeddings"]["embedding"] = jnp.asarray(table_PE, jnp.float32)
        _aim_heads(model, transformer, offsets)
    return params


def _aim_heads(model: ModelConfig, transformer: Params, offsets: tuple[int, ...]) -> None:
    """Let each head of the first layer look at a neighbour, and pass on what it sees."""
    layer = transformer["encoder"]["layer"]["0"]["attention"]
    attention = layer["self"]
    query_EHK, key_EHK = _rotations(model, offsets)
    for name, aimed_EHK in (("query", query_EHK), ("key", key_EHK)):
        aimed_ED: Any = aimed_EHK.reshape(model.embedding_size, model.hidden_size)
        if "embeddings_project" in transformer:  # its output is undone by its pseudo-inverse
            aimed_ED = jnp.linalg.pinv(transformer["embeddings_project"]["kernel"]) @ aimed_ED
        attention[name]["kernel"] += jnp.asarray(aimed_ED, jnp.float32)
    keeping_length = 1 / math.sqrt(model.hidden_size * _CUT_VARIANCE * model.initializer_range**2)
    for dense in (attention["value"], layer["output"]["dense"]):
        dense["kernel"] *= keeping_length


def _radians(model: ModelConfig) -> np.ndarray:
    return np.linspace(_SLOWEST, _FASTEST, model.embedding_size // 2)


def _sines(model: ModelConfig) -> np.ndarray:
    """Return sine and cosine of each frequency, side by side, [P, E]; a last odd column is 0."""
    angle = np.arange(model.max_position_embeddings)[:, None] * _radians(model)
    table_PE = np.zeros((model.max_position_embeddings, model.embedding_size))
    pairs = 2 * angle.shape[1]
    table_PE[:, 0:pairs:2], table_PE[:, 1:pairs:2] = np.sin(angle), np.cos(angle)
    return table_PE


def _rotations(model: ModelConfig, offsets: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return queries and keys as functions of the embedded position, [E, H, K]: each head takes some of the pairs.

    The key copies them. The query turns each by its frequency times the head's offset, so that the product of both is
    largest at that offset.
    """
    heads = model.num_attention_heads
    width = model.hidden_size // heads
    query_EHK = np.zeros((model.embedding_size, heads, width))
    key_EHK = np.zeros_like(query_EHK)
    # LayerNorm divides by the variance of the sum of words, segments and positions.
    amplitude_squared = _AMPLITUDE**2 / (2 * _CUT_VARIANCE + _AMPLITUDE**2 / 2)
    radians = _radians(model)
    for head in range(heads):
        pairs = np.arange(head, len(radians), heads)[: width // 2]
        gain = math.sqrt(_SCORE * math.sqrt(width) / (max(len(pairs), 1) * amplitude_squared))
        turn = radians * offsets[head % len(offsets)]
        for place, pair in enumerate(pairs):
            sine, cosine = 2 * pair, 2 * pair + 1
            first, second = 2 * place, 2 * place + 1
            key_EHK[sine, head, first] = key_EHK[cosine, head, second] = gain
            query_EHK[sine, head, first] = query_EHK[cosine, head, second] = gain * np.cos(turn[pair])
            query_EHK[cosine, head, first] = gain * np.sin(turn[pair])
            query_EHK[sine, head, second] = -gain * np.sin(turn[pair])
    return query_EHK, key_EHK
