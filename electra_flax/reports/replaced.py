"""What the published models see: the generator replaces words, the discriminator points at the replaced ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text
from scipy.special import expit

from electra_flax.config.architecture import Architecture
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError, escaped
from electra_flax.trees import Params
from electra_flax.weights import parity
from electra_flax.weights.sources import find_weights

# A sign beside the colour: in a pipe, a log and under NO_COLOR there is no other.
_MARKS = {"found": ("+", "bold green"), "false alarm": ("!", "bold red"), "missed": ("-", "bold yellow")}


class Detection(NamedTuple):
    """One held-out example; arrays [T] without padding."""

    original: list[str]
    corrupted: list[str]
    is_replaced: np.ndarray
    probability: np.ndarray
    """The discriminator's, of `replaced`."""


def detect(place: str, data_path: Path, num_examples: int, seed: int = 0) -> list[Detection]:
    """Let both models of an export work on held-out examples of shards.

    Raises UserError where one of them is missing, they are not of the shards' vocabulary, or nothing was held out.
    """
    data = DataFolder.open(data_path, without="train")
    if data.manifest is None or not data.manifest.examples("validation"):
        raise UserError(f"--data {data_path}: no validation split to show examples of")
    weights = find_weights(f"hf:{place}")
    vocabulary, sizes, manifest = weights.vocabulary, weights.architecture.model, data.manifest
    if (parts := weights.architecture.parts) != ["discriminator", "generator"]:
        raise UserError(
            f"--model {place}: a {parts[0]} alone: expected the folder with both that electra-flax export wrote"
        )
    assert vocabulary is not None  # find_weights: a Hugging Face folder has one
    if manifest.vocab_sha256 != vocabulary.sha256:
        raise UserError(f"--data {data_path}: shards of another vocabulary than {vocabulary.path}")
    if manifest.max_seq_length > sizes.max_position_embeddings:
        raise UserError(
            f"--data {data_path}: examples of {manifest.max_seq_length} tokens, more than the "
            f"{sizes.max_position_embeddings} positions of the model"
        )
    examples = ShardedExamples(data.splits["validation"], manifest.max_seq_length, manifest.vocab_size)
    rows = examples.read(range(min(num_examples, len(examples))))
    return detect_in(f"--model {place}", rows, vocabulary, weights.architecture, weights.to_params(), seed)


def detect_in(
    source: str, rows: np.ndarray, vocabulary: Vocabulary, architecture: Architecture, params: Params, seed: int = 0
) -> list[Detection]:
    """Replace 15 % of the tokens of examples, int32 [B, 3, T], by the generator's, and ask the discriminator.

    Raises UserError, in the name of `source`, where their numbers are not finite.
    """
    ids, mask, types = rows[:, 0], rows[:, 1], rows[:, 2]

    def logits(part: str, ids: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        found = parity.our_logits(architecture, params, part, inputs)
        parity.check_finite(source, part, found[mask == 1])
        return found.astype(np.float64)

    rng = np.random.default_rng(seed)
    special = vocabulary.special
    is_masked = (rng.random(ids.shape) < 0.15) & ~np.isin(ids, [special.pad, special.cls, special.sep])
    guesses = logits("generator", np.where(is_masked, special.mask, ids))
    sampled = (guesses + rng.gumbel(size=guesses.shape)).argmax(axis=-1)
    corrupted = np.where(is_masked, sampled, ids)
    scores = logits("discriminator", corrupted)

    def tokens(ids: np.ndarray) -> list[str]:
        return [vocabulary.tokens[number] for number in ids]

    return [
        Detection(
            tokens(ids[i, :length]),
            tokens(corrupted[i, :length]),
            corrupted[i, :length] != ids[i, :length],
            expit(scores[i, :length]),
        )
        for i, length in enumerate(mask.sum(axis=1))
    ]


def show(detections: list[Detection], console: Console) -> None:
    """Print each example, and how many of its n replaced tokens are among its n most suspicious ones."""
    if any(detection.is_replaced.any() for detection in detections):
        legend = Text("the n most suspicious tokens, n = number replaced: ")
        for name, (mark, style) in _MARKS.items():
            legend.append(f"{mark}{name}", style).append(", ")
        console.print(legend.append("the original in brackets"))
    for detection in detections:
        console.print(_coloured(detection))
    found = sum(int(d.is_replaced[most_suspicious(d)].sum()) for d in detections)
    replaced = sum(int(d.is_replaced.sum()) for d in detections)
    tokens = sum(len(d.is_replaced) for d in detections)
    console.print(f"found {found} of {replaced} replaced tokens; chance would find {replaced**2 / max(tokens, 1):.1f}")


def most_suspicious(detection: Detection) -> np.ndarray:
    """Return indices of the n tokens with the highest probability, n being how many were replaced."""
    count = int(detection.is_replaced.sum())
    return np.argsort(-detection.probability)[:count]


def _coloured(detection: Detection) -> Text:
    text = Text("  ")
    suspicious = set(most_suspicious(detection).tolist())
    for i, (token, original) in enumerate(zip(detection.corrupted, detection.original, strict=True)):
        name = ""
        if detection.is_replaced[i]:
            name = "found" if i in suspicious else "missed"
        elif i in suspicious:
            name = "false alarm"
        mark, style = _MARKS.get(name, ("", ""))
        glue = "" if token.startswith("##") or i == 0 else " "
        text.append(glue).append(mark + escaped(token.removeprefix("##")), style)
        if detection.is_replaced[i]:
            text.append(f"({escaped(original.removeprefix('##'))})", "dim")
    return text
