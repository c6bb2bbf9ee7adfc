"""What lies beside the shards: manifest.json, which says how they were made."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from electra_flax.errors import UserError
from electra_flax.files import parse_json, read_bytes, write_whole

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest describes it."""

    file: str
    examples: NonNegativeInt
    tokens: NonNegativeInt
    """Tokens that are not padding, special tokens included."""
    bytes: NonNegativeInt


class SourceInfo(TypedDict):
    """One corpus file as the manifest describes it."""

    path: str
    bytes: NonNegativeInt
    documents: NonNegativeInt


class CleaningInfo(TypedDict, total=False):
    """The steps of cleaning that were on, their settings, and how many texts each changed or dropped."""

    recipe: str
    steps: list[str]
    splitter: str
    min_characters: int
    near_similarity: float
    changed_or_dropped: dict[str, int]
    malformed_files: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What data preparation did, so that training can check that it fits (manifest.json)."""

    max_seq_length: PositiveInt
    vocab_sha256: str
    vocab_size: PositiveInt
    do_lower_case: bool
    strip_accents: bool
    builder: str
    seed: int
    unk_rate: float
    """Share of the text's pieces that are [UNK]."""
    discarded_tokens: NonNegativeInt
    """Pieces of the text that are in no example."""
    sources: list[SourceInfo]
    splits: Mapping[str, list[ShardInfo]]
    cleaning: CleaningInfo = field(default_factory=CleaningInfo)
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_whole(folder / "manifest.json", text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        path = folder / "manifest.json"
        fix = "make the shards again with electra-data shard"
        data = read_bytes(path)
        version = parse_json(data, dict[str, Any], path, fix).get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format_version is {version!r}, this release reads {FORMAT_VERSION}: {fix}")
        manifest = parse_json(data, cls, path, fix)
        if "train" not in manifest.splits:
            raise UserError(f"{path}: splits: none of them is train: {fix}")
        for shard in itertools.chain.from_iterable(manifest.splits.values()):
            if shard.file in ("", ".", "..") or Path(shard.file).name != shard.file:
                raise UserError(f"{path}: file={shard.file!r}: expected a plain name inside the folder: {fix}")
        return manifest

    def examples(self, split: str) -> int:
        return sum(shard.examples for shard in self.splits.get(split, []))

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.splits.get(split, []))


def shard_name(split: str, number: int, total: int) -> str:
    """Return the name that tensorflow-datasets gives a shard."""
    return f"electra-{split}.tfrecord-{number:05d}-of-{total:05d}"
