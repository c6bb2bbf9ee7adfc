"""What the published models see: the generator replaces words, the discriminator points at the replaced ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text
from scipy.special import expit
from scipy.stats import rankdata

from electra_flax.config.architecture import Architecture
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError, check, escaped
from electra_flax.trees import Params
from electra_flax.weights import parity
from electra_flax.weights.sources import find_weights

# A sign beside the colour: in a pipe, a log and under NO_COLOR there is no other.
_MARKS = {"found": ("+", "bold green"), "false alarm": ("!", "bold red"), "missed": ("-", "bold yellow")}
_RATE = 0.15  # of the tokens are hidden, whatever a run's masking.mask_prob was: so models can be compared
_MOST_EXAMPLES = 256
_AT_ONCE = 8  # a generator's logits of 8 examples of 512 tokens and 35,000 entries are 600 MB
# Signs that stand close to the word before or after them; a vocabulary does not say where spaces were.
_CLOSING, _OPENING = frozenset(".,!?;:%)]}\u2026\u201d\u2019\u300b\u300d"), frozenset("([{\u201c\u2018\u300a\u300c")


class Detection(NamedTuple):
    """One held-out example; arrays [T] without padding, [CLS] and [SEP]."""

    original: list[str]
    corrupted: list[str]
    is_replaced: np.ndarray
    probability: np.ndarray
    """The discriminator's, of `replaced`."""


class Tally(NamedTuple):
    """What a discriminator finds: of each example's n replaced tokens, those among its n most suspicious ones."""

    examples: int
    replaced: int
    found: int
    by_chance: float
    """What n tokens that are drawn at random would find."""
    auc: float
    """Of all tokens together; NaN where none was replaced, or all were."""


def detect(
    place: str, data_path: Path, temperature: float = 1.0, most: int = _MOST_EXAMPLES, seed: int = 0
) -> list[Detection]:
    """Let both models of an export work on held-out examples of shards, all or the first `most`.

    The generator's logits are divided by `temperature` before it draws, as a run does with objective.temperature.

    Raises UserError where one of them is missing, they are not of the shards' vocabulary, or nothing was held out.
    """
    data = DataFolder.open(data_path, without="train")
    if data.manifest is None or not data.manifest.examples("validation"):
        raise UserError(f"--data {data_path}: no validation split to show examples of")
    weights = find_weights(f"hf:{place}")
    vocabulary, sizes, manifest = weights.vocabulary, weights.architecture.model, data.manifest
    check(
        weights.architecture.logit == "replaced",
        f"--model {place}: an Electric model, whose logits are energies: ask electra-flax score",
    )
    if (parts := weights.architecture.parts) != ["discriminator", "generator"]:
        raise UserError(
            f"--model {place}: a {parts[0]} alone: expected the folder with both that electra-flax export wrote"
        )
    assert vocabulary is not None  # find_weights: a Hugging Face folder has one
    if manifest.vocab_sha256 != vocabulary.sha256:
        raise UserError(
            f"--data {data_path}: shards of another vocabulary than the model's: make them with "
            f"electra-data shard --vocab {vocabulary.path}"
        )
    if manifest.max_seq_length > sizes.max_position_embeddings:
        raise UserError(
            f"--data {data_path}: examples of {manifest.max_seq_length} tokens, more than the "
            f"{sizes.max_position_embeddings} positions of the model"
        )
    examples = ShardedExamples(data.splits["validation"], manifest.max_seq_length, manifest.vocab_size)
    rows = examples.read(range(min(most, len(examples))))
    return detect_in(f"--model {place}", rows, vocabulary, weights.architecture, weights.to_params(), temperature, seed)


def detect_in(
    source: str,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    architecture: Architecture,
    params: Params,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Detection]:
    """Replace 15% of the tokens of examples, int32 [B, 3, T], by the generator's, and ask the discriminator.

    Raises UserError, in the name of `source`, where their numbers are not finite.
    """
    rng = np.random.default_rng(seed)
    special = vocabulary.special
    found: list[Detection] = []
    for ids, mask, types in _batches(rows):

        def logits(part: str, ids: np.ndarray, mask: np.ndarray = mask, types: np.ndarray = types) -> np.ndarray:
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            values = parity.our_logits(architecture, params, part, inputs)
            parity.check_finite(source, part, values[mask == 1])
            return values

        is_word = ~np.isin(ids, [special.pad, special.cls, special.sep])
        is_masked = (rng.random(ids.shape) < _RATE) & is_word
        guesses = logits("generator", np.where(is_masked, special.mask, ids))[is_masked].astype(np.float64)
        corrupted = ids.copy()
        corrupted[is_masked] = (guesses / temperature + rng.gumbel(size=guesses.shape)).argmax(axis=-1)
        probability = expit(logits("discriminator", corrupted).astype(np.float64))
        for i, words in enumerate(is_word):
            before, after = ids[i, words], corrupted[i, words]
            original, replaced = ([vocabulary.tokens[number] for number in numbers] for numbers in (before, after))
            found.append(Detection(original, replaced, after != before, probability[i, words]))
    return found[: len(rows)]


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield int32 [3, B, T], all of one size: the last is filled up with its last row."""
    size = min(_AT_ONCE, len(rows))
    for start in range(0, len(rows), size or 1):
        numbers = np.minimum(np.arange(start, start + size), len(rows) - 1)
        yield rows[numbers].swapaxes(0, 1)


def show(detections: list[Detection], console: Console) -> None:
    """Print each example, and how many of its n replaced tokens are among its n most suspicious ones."""
    if any(detection.is_replaced.any() for detection in detections):
        legend = Text("of n replaced tokens, the n most suspicious: ")
        for name, (mark, style) in _MARKS.items():
            legend.append(f"{mark}{name}", style).append(", ")
        console.print(legend.append("original in brackets"))
    for detection in detections:
        console.print(_coloured(detection))
    total = tally(detections)
    console.print(
        f"found {total.found:,} of {total.replaced:,} replaced tokens; chance would find {total.by_chance:,.1f}"
    )


def compare(tallies: dict[str, Tally], console: Console, temperature: float = 1.0) -> None:
    """Print a row a model, by its name, about all its examples: not those alone that were shown."""
    drawn = "" if temperature == 1 else f" at temperature {temperature:g}"
    console.print(
        f"up to {_MOST_EXAMPLES} held-out examples, {_RATE:.0%} of tokens guessed by each model's own generator{drawn}"
    )
    width = max(cell_len(escaped(name)) for name in ("model", "chance", *tallies))
    columns = ("examples", "replaced", "found", "by chance", "AUC")
    rows = [
        (name, (f"{t.examples:,}", f"{t.replaced:,}", f"{t.found:,}", f"{t.by_chance:,.1f}", f"{t.auc:.2f}"))
        for name, t in tallies.items()
    ]
    for name, cells in (("model", columns), *rows, ("chance", ("", "", "", "", "0.50"))):
        shown = set_cell_size(escaped(name), width)
        console.print(f"  {shown}{''.join(f'{cell:>11s}' for cell in cells)}".rstrip())


def tally(detections: Sequence[Detection]) -> Tally:
    """Return what was found."""
    replaced = [int(detection.is_replaced.sum()) for detection in detections]
    found = sum(int(detection.is_replaced[most_suspicious(detection)].sum()) for detection in detections)
    by_chance = sum(n * n / max(len(d.is_replaced), 1) for n, d in zip(replaced, detections, strict=True))
    return Tally(len(detections), sum(replaced), found, by_chance, _auc(detections))


def _auc(detections: Sequence[Detection]) -> float:
    """Return how often a replaced token looks more suspicious than another one, of any example."""
    if not detections:
        return float("nan")
    is_replaced = np.concatenate([detection.is_replaced for detection in detections])
    ranks = rankdata(np.concatenate([detection.probability for detection in detections]))
    positives = int(is_replaced.sum())
    if positives in (0, len(is_replaced)):
        return float("nan")
    above = ranks[is_replaced].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(is_replaced) - positives)))


def most_suspicious(detection: Detection) -> np.ndarray:
    """Return indices of the n tokens with the highest probability, n being how many were replaced."""
    count = int(detection.is_replaced.sum())
    return np.argsort(-detection.probability)[:count]


def _coloured(detection: Detection) -> Text:
    text = Text("  ")
    suspicious = set(most_suspicious(detection).tolist())
    previous = ""
    for i, (token, original) in enumerate(zip(detection.corrupted, detection.original, strict=True)):
        name = ""
        if detection.is_replaced[i]:
            name = "found" if i in suspicious else "missed"
        elif i in suspicious:
            name = "false alarm"
        mark, style = _MARKS.get(name, ("", ""))
        is_close = token.startswith("##") or token in _CLOSING or previous in _OPENING or i == 0
        glue, previous = "" if is_close else " ", token
        text.append(glue).append(mark + escaped(token.removeprefix("##")), style)
        if detection.is_replaced[i]:
            text.append(f"({escaped(original.removeprefix('##'))})", "dim")
    return text
