"""What a model says of sentences: which words look replaced, what a [MASK] could be, and a vector.

How likely each is: scoring.py.

Array names: B rows, T tokens, M places that are asked about, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit
from tokenizers import Encoding

from electra_flax.config.architecture import Architecture
from electra_flax.config.schema import MeshConfig
from electra_flax.data.tokenizer import published_tokenizer
from electra_flax.errors import UserError, check, short
from electra_flax.finetuning.batches import padded_lengths
from electra_flax.model import electra
from electra_flax.model.sharding import batch_sharding, make_mesh, whole
from electra_flax.text import without_halves
from electra_flax.trees import Params
from electra_flax.weights.parity import check_finite
from electra_flax.weights.weights import Weights

Pooling = Literal["mean", "cls"]
"""Of which states a sentence's vector is made: all of its tokens' mean, or that of [CLS]."""

_TOKENS = 8192
"""In a batch, padding included: a generator's logits of 512 places and 35,000 entries are 72 MB."""


@dataclass(frozen=True)
class Piece:
    """A token of a sentence, without [CLS] and [SEP]."""

    token: str
    start: int
    """Characters from the beginning of the sentence."""
    end: int
    probability: float
    """The discriminator's, of `replaced`."""


@dataclass(frozen=True)
class Word:
    """What the tokenizer takes for a word: letters between spaces and punctuation marks, each of which is one too."""

    text: str
    start: int
    end: int
    probability: float
    """The highest of its pieces'."""


@dataclass(frozen=True)
class Detected:
    """A sentence, and what of it looks replaced."""

    text: str
    pieces: tuple[Piece, ...]
    words: tuple[Word, ...]

    @property
    def tokens(self) -> list[str]:
        return [piece.token for piece in self.pieces]

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Return where each token begins and ends in the text, in characters."""
        return [(piece.start, piece.end) for piece in self.pieces]

    @property
    def probabilities(self) -> np.ndarray:
        """Return each token's, float32."""
        return np.asarray([piece.probability for piece in self.pieces], np.float32)


@dataclass(frozen=True)
class Candidate:
    """Of one [MASK]."""

    token: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A sentence, and of each [MASK] in it the likeliest tokens, likeliest first."""

    text: str
    masks: tuple[tuple[Candidate, ...], ...]


Step = Callable[..., Any]
"""(architecture, parameters, ids_BT, mask_BT, more arrays) -> arrays [B, ...]; compiled once for each shape."""
More = Callable[[np.ndarray, int], tuple[np.ndarray, ...]]
"""(numbers of the rows of a batch, tokens to which they are padded) -> arrays [B, ...]."""


class Sentence(NamedTuple):
    """A text as a model reads it."""

    text: str
    ids: np.ndarray
    """int32 [T], [CLS] and [SEP] around the text's own."""
    inner: list[int]
    """Places of the text's own tokens."""
    named: list[tuple[str, int, int]]
    """Of each of these: the token, and where it begins and ends in the text."""
    words: list[int]
    """Of each of these: the number of its word."""

    @classmethod
    def of(cls, text: str, encoding: Encoding) -> Sentence:
        inner = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        tokens, offsets, words = encoding.tokens, encoding.offsets, encoding.word_ids
        named = [(tokens[i], *offsets[i]) for i in inner]
        return cls(text, np.asarray(encoding.ids, np.int32), inner, named, [words[i] for i in inner])


class Part:
    """One of a model's parts, "discriminator" or "generator", with its tokenizer, on the devices of this process."""

    def __init__(self, place: str, name: str, weights: Weights, params: Params) -> None:
        """Take the part of that name of weights that were found at a place. Raises UserError without a vocabulary."""
        if weights.vocabulary is None or weights.casing is None:
            raise UserError(f"{place}: no vocabulary beside its weights: export it first, with --vocab")
        self.architecture, self.vocabulary = weights.architecture, weights.vocabulary
        self.longest = weights.architecture.sizes_of(name).max_position_embeddings
        self._place, self._name = place, name
        self._tokenizer = published_tokenizer(weights.vocabulary, weights.casing)
        self._mesh = make_mesh(MeshConfig(), jax.local_devices())
        self._params = jax.device_put(params, whole(self._mesh))

    def read(self, texts: Sequence[str]) -> list[Sentence]:
        """Return the texts as the model reads them; halves of surrogate pairs are replaced.

        Raises UserError for one text that is no list, for an empty one, and for one with more tokens than positions.
        """
        if isinstance(texts, str):
            raise UserError(f'"{short(texts)}": a text, expected a list of texts: ["..."]')
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {number} of the list: {short(text)}, expected a str")
        found = []
        whole_texts = [without_halves(text) for text in texts]
        for text, encoding in zip(whole_texts, self._tokenizer.encode_batch(whole_texts), strict=True):
            if len(encoding.ids) <= 2:
                raise UserError(f'"{text}": has no words: give a sentence')
            if len(encoding.ids) > self.longest:
                raise UserError(
                    f'"{text[:20]}...": {len(encoding.ids):,} pieces, more than the {self.longest} positions of the '
                    "model: give shorter texts"
                )
            found.append(Sentence.of(text, encoding))
        return found

    def answers(self, step: Step, rows: Sequence[Sentence], more: More = lambda numbers, tokens: ()) -> list[Any]:
        """Return what `step` answers of each row, in their order; `more` gives the rest of what it is asked.

        Rows of like length go together, in batches of few shapes.
        """
        found: list[Any] = [None] * len(rows)
        lengths = np.asarray([len(row.ids) for row in rows])
        for numbers, tokens in _batches(lengths, self.longest, self._mesh.size):
            ids_BT = np.full((len(numbers), tokens), self.vocabulary.special.pad, np.int32)
            for place, number in zip(ids_BT, numbers, strict=True):
                place[: lengths[number]] = rows[number].ids
            mask_BT = (np.arange(tokens)[None] < lengths[numbers, None]).astype(np.int32)
            arrays = jax.device_put((ids_BT, mask_BT, *more(numbers, tokens)), batch_sharding(self._mesh))
            outputs = jax.device_get(step(self.architecture, self._params, *arrays))
            for i, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda output, i=i: output[i], outputs)
        return found

    def check(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers. Raises UserError where one is not finite."""
        check_finite(self._place, self._name, numbers)
        return numbers


def _batches(lengths: np.ndarray, longest: int, multiple: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield numbers of rows and to how many tokens they are padded; a last row may stand several times.

    The rows are a power of two times `multiple`, so that there are few shapes.
    """
    bounds = padded_lengths(longest)
    for shorter, tokens in zip((0, *bounds), bounds, strict=False):
        chosen = np.flatnonzero((lengths > shorter) & (lengths <= tokens))
        most = _power_of_two(_TOKENS // tokens // multiple) * multiple
        for start in range(0, len(chosen), most):
            some = chosen[start : start + most]
            count = _power_of_two(-(-len(some) // multiple)) * multiple
            yield some[np.minimum(np.arange(count), len(some) - 1)], tokens


def _power_of_two(least: int) -> int:
    """Return the smallest power of two that is no less."""
    return 1 << max(least - 1, 0).bit_length()


# ------------------------------------------------------------------------------------------------------------- answers


def detect(part: Part, texts: Sequence[str]) -> list[Detected]:
    """Return for each text how likely each of its pieces was put in by a generator. Raises UserError."""
    sentences = part.read(texts)
    return [
        _detected(sentence, expit(part.check(logits_T[sentence.inner]).astype(np.float64)))
        for sentence, logits_T in zip(sentences, part.answers(logits_BT, sentences), strict=True)
    ]


def _detected(sentence: Sentence, probabilities: np.ndarray) -> Detected:
    pieces = [Piece(*named, float(p)) for named, p in zip(sentence.named, probabilities, strict=True)]
    words = []
    for _, group in groupby(zip(sentence.words, pieces, strict=True), key=itemgetter(0)):
        of_word = [piece for _, piece in group]
        start, end = of_word[0].start, of_word[-1].end
        words.append(Word(sentence.text[start:end], start, end, max(piece.probability for piece in of_word)))
    return Detected(sentence.text, tuple(pieces), tuple(words))


def fill(part: Part, texts: Sequence[str], top: int) -> list[Filled]:
    """Return for each text and each [MASK] in it the generator's `top` likeliest tokens, likeliest first.

    Special and unused tokens, which are no words, are left out; the probabilities are those of the model all the same.
    Raises UserError, also for a text without [MASK].
    """
    check(top >= 1, f"top={top}: expected 1 or more")
    sentences, tokens = part.read(texts), part.vocabulary.tokens
    no_words = {*part.vocabulary.special, *(i for i, token in enumerate(tokens) if token.startswith("[unused"))}
    masks = [np.flatnonzero(sentence.ids == part.vocabulary.special.mask) for sentence in sentences]
    for sentence, places in zip(sentences, masks, strict=True):
        if not len(places):
            raise UserError(f'"{short(sentence.text)}": has no [MASK]: write [MASK] where the generator shall fill in')

    def asked(numbers: np.ndarray, _: int) -> tuple[np.ndarray]:
        width = _power_of_two(max(len(masks[number]) for number in numbers))
        return (np.stack([np.resize(masks[number], width) for number in numbers]).astype(np.int32),)

    found = []
    answers = part.answers(functools.partial(_candidates, min(top + len(no_words), len(tokens))), sentences, asked)
    for sentence, places, (numbers_MK, probability_MK) in zip(sentences, masks, answers, strict=True):
        part.check(probability_MK)
        candidates = (
            [Candidate(tokens[i], float(p)) for i, p in zip(numbers_K, probability_K, strict=True) if i not in no_words]
            for numbers_K, probability_K in zip(numbers_MK[: len(places)], probability_MK[: len(places)], strict=True)
        )
        found.append(Filled(sentence.text, tuple(tuple(each[:top]) for each in candidates)))
    return found


def embed(part: Part, texts: Sequence[str], pooling: Pooling) -> np.ndarray:
    """Return the discriminator's last states of each text as one vector, float32 [texts, D]. Raises UserError."""
    check(pooling in get_args(Pooling), f"pooling={pooling}: expected {' or '.join(get_args(Pooling))}")
    sentences = part.read(texts)

    def pooled(numbers: np.ndarray, tokens: int) -> tuple[np.ndarray]:
        weight_BT = np.zeros((len(numbers), tokens), np.float32)
        for weight_T, number in zip(weight_BT, numbers, strict=True):
            places = sentences[number].inner if pooling == "mean" else [0]
            weight_T[places] = 1 / len(places)
        return (weight_BT,)

    found = np.asarray(part.answers(_vectors_BD, sentences, pooled), np.float32)
    return part.check(found.reshape(len(sentences), part.architecture.model.hidden_size))


# --------------------------------------------------------------------------------------------------------------- steps


@functools.partial(jax.jit, static_argnums=0)
def logits_BT(architecture: Architecture, params: Params, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    return electra.apply_discriminator(architecture, params, ids_BT, mask_BT, jnp.zeros_like(ids_BT))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _candidates(
    top: int, architecture: Architecture, params: Params, ids_BT: jax.Array, mask_BT: jax.Array, place_BM: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the `top` likeliest entries and their probabilities, [B, M, top]."""
    logits_BMV = electra.apply_generator(architecture, params, ids_BT, mask_BT, jnp.zeros_like(ids_BT), place_BM)
    probabilities, numbers = jax.lax.top_k(jax.nn.softmax(logits_BMV, axis=-1), top)
    return numbers, probabilities


@functools.partial(jax.jit, static_argnums=0)
def _vectors_BD(
    architecture: Architecture, params: Params, ids_BT: jax.Array, mask_BT: jax.Array, weight_BT: jax.Array
) -> jax.Array:
    hidden_BTD = electra.apply_encoder(architecture, params, ids_BT, mask_BT, jnp.zeros_like(ids_BT))
    vectors_BD: jax.Array = (hidden_BTD.astype(jnp.float32) * weight_BT[..., None]).sum(axis=1)
    return vectors_BD
