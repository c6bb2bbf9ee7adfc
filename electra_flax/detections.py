"""What the published models see: the generator replaces words, the discriminator points at the replaced ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from electra_flax.errors import UserError
from electra_flax.parity import quiet_transformers
from electra_flax.records import DataFolder, ShardedExamples, Vocabulary

Logits = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
"""(input_ids, attention_mask, token_type_ids), each [B, T] -> logits [B, T] or [B, T, V]."""


# A sign beside the colour: in a pipe, a log and under NO_COLOR there is no other.
_MARKS = {"found": ("+", "bold green"), "false alarm": ("!", "bold red"), "missed": ("-", "bold yellow")}


class Detection(NamedTuple):
    """One held-out example; arrays [T] without padding."""

    original: list[str]
    corrupted: list[str]
    is_replaced: np.ndarray
    probability: np.ndarray
    """The discriminator's, of `replaced`."""


def detect(export: Path, data_path: Path, num_examples: int, seed: int = 0) -> list[Detection]:
    """Loads both exported folders with transformers and lets them work on held-out examples.

    Raises UserError where a folder is missing or there is no validation split.
    """
    import transformers

    data = DataFolder.open(data_path)
    if data.manifest is None or not data.manifest.examples("validation"):
        raise UserError(f"--data {data_path}: no validation split to show examples of")
    if not (export / "discriminator").is_dir() or not (export / "generator").is_dir():
        raise UserError(f"--model {export}: expected the folder that electra-flax export wrote, with both models")
    with quiet_transformers():
        generator = transformers.FlaxElectraForMaskedLM.from_pretrained(export / "generator")
        discriminator = transformers.FlaxElectraForPreTraining.from_pretrained(export / "discriminator")
    examples = ShardedExamples(data.splits["validation"], data.manifest.max_seq_length, data.manifest.vocab_size)
    vocabulary = Vocabulary.read(export / "discriminator/vocab.txt")

    def logits(model: Any) -> Logits:
        return lambda ids, mask, types: model(ids, mask, types).logits

    rows = examples.read(range(min(num_examples, len(examples))))
    return detect_in(rows, vocabulary, logits(generator), logits(discriminator), seed)


def detect_in(
    rows: np.ndarray, vocabulary: Vocabulary, generate: Logits, discriminate: Logits, seed: int = 0
) -> list[Detection]:
    """Replaces 15 % of the tokens of examples, int32 [B, 3, T], by the generator's, and asks the discriminator."""
    ids, mask, types = rows[:, 0], rows[:, 1], rows[:, 2]
    rng = np.random.default_rng(seed)
    special = vocabulary.special
    is_masked = (rng.random(ids.shape) < 0.15) & ~np.isin(ids, [special.pad, special.cls, special.sep])
    logits = np.asarray(generate(np.where(is_masked, special.mask, ids), mask, types), np.float64)
    sampled = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
    corrupted = np.where(is_masked, sampled, ids)
    scores = np.asarray(discriminate(corrupted, mask, types), np.float64)

    def tokens(ids: np.ndarray) -> list[str]:
        return [vocabulary.tokens[number] for number in ids]

    return [
        Detection(
            tokens(ids[i, :length]),
            tokens(corrupted[i, :length]),
            corrupted[i, :length] != ids[i, :length],
            1 / (1 + np.exp(-scores[i, :length])),
        )
        for i, length in enumerate(mask.sum(axis=1))
    ]


def show(detections: list[Detection], console: Console) -> None:
    """Of each example's n replaced tokens, which are among its n most suspicious ones?"""
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
    """Indices of the n tokens with the highest probability, n being how many were replaced."""
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
        text.append(glue).append(mark + token.removeprefix("##"), style)
        if detection.is_replaced[i]:
            text.append(f"({original.removeprefix('##')})", "dim")
    return text
