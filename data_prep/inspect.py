"""Shows what is in a folder of shards: the manifest in words, lengths, and a few examples decoded, in colour."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from electra_flax import formats
from electra_flax.config.packing import PackingConfig
from electra_flax.data.order import shuffled
from electra_flax.data.packing import Packing, pack_epoch
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import escaped
from electra_flax.formats import counted

_SEGMENT_STYLES = ("cyan", "yellow")
_MASKED = 0.15  # share of tokens that training masks (docs/semantics.md, section 5)
_SHOWN_SOURCES = 20
_SAMPLED_EXAMPLES = 10_000
_BINS = 8
_PACKED_EXAMPLES = 1_000_000
_SEGMENTS = (2, 4, 8)


def summarize(folder: Path) -> dict[str, Any]:
    """Return the manifest and its totals. Raises UserError where the folder has none."""
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
    lengths = ShardedExamples(data.splits["train"], manifest.max_seq_length, manifest.vocab_size).lengths()
    return {
        **totals,
        "padding_rate": round(padding, 4),
        "packing": packing_gains(lengths, manifest.max_seq_length) if len(lengths) else [],
        "manifest": dataclasses.asdict(manifest),
    }


def packing_gains(lengths: np.ndarray, tokens: int) -> list[dict[str, float]]:
    """Return what data.packing=best_fit would make of examples of these lengths, for some limits of examples a row.

    Of a million of them at most, drawn at random.
    """
    lengths = lengths[shuffled(len(lengths), 0, 0)[:_PACKED_EXAMPLES]]
    found = []
    for segments in _SEGMENTS:
        rows = len(pack_epoch(lengths, Packing(tokens, segments, PackingConfig().window), 0, 0))
        fill = int(lengths.sum()) / (rows * tokens)
        found.append({"segments": segments, "times_fewer_rows": round(len(lengths) / rows, 3), "fill": round(fill, 4)})
    return found


def show(folder: Path, num_examples: int, console: Console) -> None:
    """Print the summary, sources, lengths and a few examples: segments in colours, masked tokens reversed."""
    summary = summarize(folder)
    manifest, gains = summary.pop("manifest"), summary.pop("packing", [])
    for name, value in {**summary, **(manifest or {})}.items():
        if name not in ("splits", "sources", "cleaning"):
            console.print(_line(name, escaped(_shown(name, value))), soft_wrap=True)
    if manifest is None:
        return
    _show_cleaning(manifest["cleaning"], console)
    _show_sources(manifest["sources"], console)
    data = DataFolder.open(folder)
    vocabulary = Vocabulary.read(folder / "vocab.txt")
    examples = ShardedExamples(data.splits["train"], manifest["max_seq_length"], len(vocabulary.tokens))
    _show_lengths(examples, manifest["max_seq_length"], console)
    console.print(_line("packing", "with --data.packing best_fit (docs/training.md), at most so many examples a row:"))
    for gain in gains:
        console.print(
            f"  {gain['segments']:5d} {gain['times_fewer_rows']:9.2f} times fewer rows, {gain['fill']:.1%} full"
        )
    rng = np.random.default_rng(0)
    for number, (ids, mask, segments) in enumerate(examples.read(range(min(num_examples, len(examples))))):
        title = Text.assemble("\n", (f"example {number}", "bold"), f", {mask.sum():,} tokens")
        console.print(title.append("; in reverse: tokens that training might mask"))
        console.print(_coloured(vocabulary, ids[mask == 1], segments, rng))


def _shown(name: str, value: Any) -> str:
    if name.endswith("_rate"):
        return f"{value:.2%}"
    if name.endswith("sha256"):
        return f"{value[:12]}..."  # all of it, with its name, fits into no line of 80
    return f"{value:,}" if type(value) is int else str(value)


def _line(name: str, value: str) -> Text:
    return Text.assemble((f"{name:19s}", "bold"), f" {value}")


def _show_cleaning(cleaning: dict[str, Any], console: Console) -> None:
    if not cleaning:
        return
    steps = f"{cleaning.get('recipe', 'none')}: {', '.join(cleaning.get('steps', ())) or 'no steps'}"
    console.print(_line("cleaning", escaped(steps)))
    for step, count in cleaning.get("changed_or_dropped", {}).items():
        console.print(f"  {escaped(step):17s} {counted(count, 'texts')} changed or dropped")
    for path, reason in cleaning.get("malformed_files", {}).items():
        console.print(escaped(f"  {path}: {reason}"), soft_wrap=True)


def _show_sources(sources: list[dict[str, Any]], console: Console) -> None:
    console.print(_line("sources", counted(len(sources), "files")))
    largest = sorted(sources, key=lambda source: -source["documents"])[:_SHOWN_SOURCES]
    for source in largest:
        counts = f"  {counted(source['documents'], 'documents'):>20s}  {formats.size(source['bytes']):>8s}  "
        console.print(counts + escaped(source["path"]))
    if len(sources) > _SHOWN_SOURCES:
        console.print(f"  and {counted(len(sources) - _SHOWN_SOURCES, 'files')} more")


def _show_lengths(examples: ShardedExamples, max_seq_length: int, console: Console) -> None:
    """Print a histogram of tokens an example, of an even sample."""
    places = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), _SAMPLED_EXAMPLES), dtype=int))
    lengths = examples.read(places)[:, 1].sum(axis=1)
    counts, edges = np.histogram(lengths, bins=_BINS, range=(0, max_seq_length))
    console.print(_line("tokens per example", f"of {counted(len(places), 'examples')}"))
    for count, first, last in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(40 * count / counts.max())
        console.print(f"  {int(first) + 1:5d} to {int(last):5d} {count / len(places):6.1%} {bar}")


def _coloured(vocabulary: Vocabulary, ids: Any, segments: Any, rng: np.random.Generator) -> Text:
    special = vocabulary.special
    candidates = np.flatnonzero(~np.isin(ids, special))
    masked = set(rng.choice(candidates, round(_MASKED * len(candidates)), replace=False).tolist())
    text = Text()
    for place, (token_id, segment) in enumerate(zip(ids, segments, strict=False)):
        token = vocabulary.tokens[token_id]
        style = _SEGMENT_STYLES[segment]
        if token_id == special.unk:
            style = "bold red"
        elif token_id in special:
            style = "dim"
        if place in masked:
            style += " reverse"
        glue = "" if token.startswith("##") or not text else " "
        text.append(glue)
        text.append(escaped(token.removeprefix("##")), style=style)
    return text
