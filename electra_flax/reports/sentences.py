"""What a published model says about a user's own sentences: which words look replaced, and what a [MASK] could be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.text import Text
from scipy.special import expit
from tokenizers import Encoding

from electra_flax.data.tokenizer import published_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError, escaped
from electra_flax.weights import parity
from electra_flax.weights.sources import find_part

# Probability of "replaced" from which a piece is shown so.
_STYLES = ((0.9, "bold red"), (0.5, "bold yellow"), (0.2, "cyan"))


class Piece(NamedTuple):
    """Of a sentence, without [CLS] and [SEP]."""

    token: str
    start: int
    """Characters from the beginning of the sentence."""
    end: int
    probability: float
    """The discriminator's, of `replaced`."""


class Candidate(NamedTuple):
    """Of one [MASK]."""

    token: str
    probability: float


def detect(place: str, texts: Sequence[str]) -> list[list[Piece]]:
    """Return for each text how likely each of its pieces was put in by a generator. Raises UserError."""
    _, encoded, logits = _ask(place, "discriminator", texts)
    return [
        [
            Piece(token, start, end, float(expit(np.float64(score))))
            for token, (start, end), is_special, score in zip(
                encoding.tokens, encoding.offsets, encoding.special_tokens_mask, row, strict=False
            )
            if not is_special
        ]
        for encoding, row in zip(encoded, logits, strict=True)
    ]


def fill(place: str, texts: Sequence[str], count: int) -> list[list[list[Candidate]]]:
    """Return for each text and each [MASK] in it the generator's `count` likeliest tokens, likeliest first.

    Raises UserError, also for a text without [MASK].
    """
    for text in texts:
        if "[MASK]" not in text:
            raise UserError(f'"{text}": has no [MASK]: write [MASK] where the generator shall fill in')
    vocabulary, encoded, logits = _ask(place, "generator", texts)

    def candidates(scores: np.ndarray) -> list[Candidate]:
        exponential = np.exp(scores.astype(np.float64) - scores.max())
        probabilities = exponential / exponential.sum()
        return [Candidate(vocabulary.tokens[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:count]]

    return [
        [candidates(row[i]) for i, number in enumerate(encoding.ids) if number == vocabulary.special.mask]
        for encoding, row in zip(encoded, logits, strict=True)
    ]


def _ask(place: str, part: str, texts: Sequence[str]) -> tuple[Vocabulary, list[Encoding], np.ndarray]:
    """Return the texts' pieces and the logits, float32 [B, T] or [B, T, V].

    Raises UserError where there is no such model, for an empty text and for one with more pieces than positions.
    """
    weights = find_part(place, part)
    vocabulary, casing, longest = weights.vocabulary, weights.casing, weights.architecture.model.max_position_embeddings
    assert vocabulary is not None and casing is not None  # find_weights: a Hugging Face folder has them
    encoded = published_tokenizer(vocabulary, casing).encode_batch(list(texts))
    for text, encoding in zip(texts, encoded, strict=True):
        if len(encoding.ids) <= 2:
            raise UserError(f'"{text}": has no words: give a sentence')
        if len(encoding.ids) > longest:
            raise UserError(
                f'"{text[:20]}...": {len(encoding.ids):,} pieces, more than the {longest} positions of the model: '
                "give shorter texts"
            )
    ids = np.full((len(encoded), max(len(encoding.ids) for encoding in encoded)), vocabulary.special.pad, np.int32)
    mask = np.zeros_like(ids)
    for i, encoding in enumerate(encoded):
        ids[i, : len(encoding.ids)] = encoding.ids
        mask[i, : len(encoding.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    logits = parity.our_logits(weights.architecture, weights.to_params(), part, inputs)
    parity.check_finite(f"--model {place}", part, logits[mask == 1])
    return vocabulary, encoded, logits


def coloured(text: str, pieces: Sequence[Piece]) -> Text:
    """Return the text as it was given, suspicious pieces in colour and followed by their probability."""
    shown, position = Text(), 0
    for piece in pieces:
        shown.append(escaped(text[position : piece.start]))
        style = next((style for least, style in _STYLES if piece.probability >= least), "")
        shown.append(escaped(text[piece.start : piece.end]), style)
        if is_marked(piece):
            shown.append(f"({piece.probability:.0%})", "dim")
        position = piece.end
    return shown.append(escaped(text[position:]))


def is_marked(piece: Piece) -> bool:
    """Return whether it looks replaced enough to be shown so."""
    return piece.probability >= _STYLES[-1][0]


def legend() -> Text:
    """Return what the marks mean: the number, where there are no colours."""
    shown = Text("in brackets, how likely it is that what stands before was replaced: ")
    for (least, style), glue in zip(reversed(_STYLES), (", ", ", ", ""), strict=True):
        shown.append(f"{least:.0%} or more", style).append(glue)
    return shown
