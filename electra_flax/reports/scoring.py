"""How likely a model finds a sentence, token by token: a generator that guesses each in turn, or Electric's energies.

Array names: B rows, T tokens, M places that are asked about, V vocabulary, N places of all sentences.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture
from electra_flax.errors import UserError, short
from electra_flax.model import electra
from electra_flax.reports.sentences import Part, Sentence, logits_BT
from electra_flax.trees import Params

Measure = Literal["log_probability", "negative_energy"]
"""log_probability: of a token that is masked; negative_energy: the same up to a constant, of a token that is there."""


@dataclass(frozen=True)
class ScoredPiece:
    """A token of a sentence, without [CLS] and [SEP]."""

    token: str
    start: int
    """Characters from the beginning of the sentence."""
    end: int
    log_likelihood: float
    """In nats: what `measure` says."""


@dataclass(frozen=True)
class Scored:
    """A sentence, and how likely a model finds it."""

    text: str
    log_likelihood: float
    """The sum over its tokens."""
    per_token: float
    """Their mean."""
    measure: Measure
    pieces: tuple[ScoredPiece, ...]


def score(part: Part, texts: Sequence[str]) -> list[Scored]:
    """Return each text's pseudo-log-likelihood (Salazar et al. 2020): of each token, masked, by a generator.

    As many passes as there are tokens, many in a batch. Raises UserError, also for a text that holds [MASK].
    """
    sentences = _whole_sentences(part, texts)
    rows = [sentence for sentence in sentences for _ in sentence.inner]
    place_N = np.asarray([place for sentence in sentences for place in sentence.inner], np.int32)

    def asked(numbers: np.ndarray, _: int) -> tuple[np.ndarray]:
        return (place_N[numbers],)

    step = functools.partial(_log_likelihood_B, part.vocabulary.special.mask)
    values = iter(part.check(np.asarray(part.answers(step, rows, asked))).tolist())
    return [_scored(each, [next(values) for _ in each.inner], "log_probability") for each in sentences]


def score_by_energies(part: Part, texts: Sequence[str]) -> list[Scored]:
    """Return each text's pseudo-log-likelihood up to a constant: of each token, minus its energy (Clark et al. 2020).

    One pass. Raises UserError as `score` does.
    """
    sentences = _whole_sentences(part, texts)
    return [
        _scored(sentence, (-part.check(energy_T[sentence.inner]).astype(np.float64)).tolist(), "negative_energy")
        for sentence, energy_T in zip(sentences, part.answers(logits_BT, sentences), strict=True)
    ]


def _whole_sentences(part: Part, texts: Sequence[str]) -> list[Sentence]:
    sentences = part.read(texts)
    for sentence in sentences:
        if part.vocabulary.special.mask in sentence.ids:
            raise UserError(
                f'"{short(sentence.text)}": holds [MASK], which is no word to score: give the whole sentence'
            )
    return sentences


def _scored(sentence: Sentence, values: Iterable[float], measure: Measure) -> Scored:
    pieces = tuple(ScoredPiece(*named, value) for named, value in zip(sentence.named, values, strict=True))
    total = sum(piece.log_likelihood for piece in pieces)
    return Scored(sentence.text, total, total / len(pieces), measure, pieces)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood_B(
    mask_id: int,
    architecture: Architecture,
    params: Params,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    place_B: jax.Array,
) -> jax.Array:
    """Return that of the token at `place_B`, which is masked."""
    target_B1 = jnp.take_along_axis(ids_BT, place_B[:, None], axis=1)
    is_asked_BT = jnp.arange(ids_BT.shape[1])[None] == place_B[:, None]
    logits_BMV = electra.apply_generator(
        architecture, params, jnp.where(is_asked_BT, mask_id, ids_BT), mask_BT, jnp.zeros_like(ids_BT), place_B[:, None]
    )
    log_likelihood_BV = jax.nn.log_softmax(logits_BMV[:, 0], axis=-1)
    found_B: jax.Array = jnp.take_along_axis(log_likelihood_BV, target_B1, axis=1)[:, 0]
    return found_B
