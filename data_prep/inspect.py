"""Shows what is in a folder of shards: the manifest in words, and a few examples decoded, in colour."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from electra_flax.config import UserError
from electra_flax.records import DataFolder, ShardedExamples, Vocabulary

_SEGMENT_STYLES = ("cyan", "yellow")


def summarize(folder: Path) -> dict[str, Any]:
    """The manifest and its totals. Raises UserError where the folder has none."""
    data = DataFolder.open(folder)
    if data.manifest is None:
        shards = ShardedExamples(data.splits["train"], 1, 1).shards
        return {"manifest": None, "shards": len(shards), "train_examples": sum(map(len, shards))}
    manifest = data.manifest
    totals = {
        f"{split}_{what}": count
        for split in manifest.splits
        for what, count in (("examples", manifest.examples(split)), ("tokens", manifest.tokens(split)))
    }
    slots = max(1, sum(manifest.examples(split) for split in manifest.splits) * manifest.max_seq_length)
    padding = 1 - sum(manifest.tokens(split) for split in manifest.splits) / slots
    return {**totals, "padding_rate": round(padding, 4), "manifest": dataclasses.asdict(manifest)}


def show(folder: Path, num_examples: int, console: Console) -> None:
    """Prints the summary and the first examples; segments in colours, special tokens dimmed, [UNK] in red."""
    summary = summarize(folder)
    manifest = summary.pop("manifest")
    for name, value in {**summary, **(manifest or {})}.items():
        if name not in ("splits", "sources"):
            shown = f"{value:,}" if type(value) is int else value
            console.print(f"[bold]{name:19s}[/] {shown}", soft_wrap=True)
    if manifest is None:
        return
    console.print(f"[bold]{'sources':19s}[/] {len(manifest['sources'])} files")
    data = DataFolder.open(folder)
    vocabulary = Vocabulary.read(folder / "vocab.txt")
    examples = ShardedExamples(data.splits["train"], manifest["max_seq_length"], len(vocabulary.tokens))
    if num_examples < 0:
        raise UserError(f"--examples {num_examples}: expected 0 or more")
    for number, (ids, mask, segments) in enumerate(examples.read(range(min(num_examples, len(examples))))):
        console.print(f"\n[bold]example {number}[/], {mask.sum()} tokens")
        console.print(_coloured(vocabulary, ids[mask == 1], segments))


def _coloured(vocabulary: Vocabulary, ids: Any, segments: Any) -> Text:
    special = vocabulary.special
    text = Text()
    for token_id, segment in zip(ids, segments, strict=False):
        token = vocabulary.tokens[token_id]
        style = _SEGMENT_STYLES[segment]
        if token_id == special.unk:
            style = "bold red"
        elif token_id in special:
            style = "dim"
        glue = "" if token.startswith("##") or not text else " "
        text.append(glue + token.removeprefix("##"), style=style)
    return text
