"""The contract between data preparation and training: examples in shards, their vocabulary and manifest.

A shard is a TFRecord file (tfrecord.py) of `tf.train.Example`s with three int64 lists of max_seq_length values each:
`input_ids`, `input_mask`, `segment_ids` (docs/semantics.md, section 2): the original's shards train here, ours there.

Needs numpy, numba and google-crc32c only (and TensorStore for shards in a bucket): neither TensorFlow nor JAX.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from electra_flax.errors import UserError
from electra_flax.example_decoder import decode_records
from electra_flax.files import parse_json, read_bytes, write_whole
from electra_flax.text import decode
from electra_flax.tfrecord import Shard

FEATURES = ("input_ids", "input_mask", "segment_ids")
FORMAT_VERSION = 1
_REQUESTS = 64  # at a time, to a bucket
_ORIGINAL_NAME = re.compile(r"pretrain_data\.tfrecord-(\d+)-of-(\d+)$")


# ------------------------------------------------------------------------- tf.train.Example, three int64 lists


def encode_example(token_ids: Sequence[int], num_first: int, max_seq_length: int) -> bytes:
    """Token ids, of which the first `num_first` are segment 0 -> the bytes of a tf.train.Example, zero-padded."""
    used = len(token_ids)
    table = _varint_table()
    try:
        ids = b"".join([table[id_] for id_ in token_ids])
    except IndexError:  # a vocabulary beyond the table
        ids = b"".join(map(_varint, token_ids))
    ids += bytes(max_seq_length - used)
    return _field(
        1,
        _ids_head(len(ids)) + ids + _mask_entry(used, max_seq_length) + _segment_entry(num_first, used, max_seq_length),
    )


@functools.cache
def _ids_head(num_bytes: int) -> bytes:
    """What stands before so many bytes of ids in their entry."""
    return _entry("input_ids", bytes(num_bytes))[:-num_bytes]


@functools.cache
def _mask_entry(used: int, max_seq_length: int) -> bytes:
    return _entry("input_mask", b"\1" * used + bytes(max_seq_length - used))


@functools.lru_cache(1 << 16)
def _segment_entry(num_first: int, used: int, max_seq_length: int) -> bytes:
    values = bytes(num_first) + b"\1" * (used - num_first) + bytes(max_seq_length - used)
    return _entry("segment_ids", values)


def _entry(name: str, packed: bytes) -> bytes:
    """A feature's name and its int64 list, as the map entry of a tf.train.Example."""
    return _field(1, _field(1, name.encode()) + _field(2, _field(3, _field(1, packed))))


def decode_example(payload: bytes, max_seq_length: int, where: str) -> np.ndarray:
    """The bytes of a tf.train.Example -> int32 [3, max_seq_length] in the order of FEATURES.

    `where` is named in errors. Raises UserError when a feature is missing or of another length.
    """
    lists = dict(_feature_lists(payload))
    rows = np.empty((len(FEATURES), max_seq_length), dtype=np.int32)
    for row, name in zip(rows, FEATURES, strict=True):
        if name not in lists:
            raise UserError(f"{where}: holds {sorted(lists)}, expected the features {list(FEATURES)}")
        values = _from_varints(lists[name])
        if len(values) != max_seq_length:
            raise UserError(
                f"{where}: {name} has {len(values)} values, but data.max_seq_length={max_seq_length}: set "
                f"data.max_seq_length to {len(values)} or make shards with --max-seq-length {max_seq_length}"
            )
        row[:] = values
    return rows


@functools.cache
def _varint_table() -> list[bytes]:
    return [_varint(value) for value in range(1 << 16)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def _from_varints(data: bytes) -> np.ndarray:
    octets = np.frombuffer(data, dtype=np.uint8)
    last = octets < 0x80
    if last.all():
        return octets
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(octets)) - np.repeat(starts, np.diff(np.append(starts, len(octets))))
    return np.add.reduceat((octets & 0x7F).astype(np.int64) << (7 * place), starts)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the length-delimited fields of a message; Example uses no other kind."""
    position = 0
    while position < len(data):
        tag = data[position]
        position, length, shift = position + 1, 0, 0
        while True:
            octet = data[position]
            position, length, shift = position + 1, length | (octet & 0x7F) << shift, shift + 7
            if octet < 0x80:
                break
        yield tag >> 3, data[position : position + length]
        position += length


def _feature_lists(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """(feature name, packed int64 values) of a tf.train.Example."""
    for _, features in _fields(payload):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            int64_list = dict(_fields(pair.get(2, b""))).get(3, b"")
            yield pair.get(1, b"").decode(), dict(_fields(int64_list)).get(1, b"")


# ---------------------------------------------------------------------------------------------------- vocabulary


class SpecialTokens(NamedTuple):
    """Ids of the tokens that have a meaning of their own."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


class Vocabulary(NamedTuple):
    """A WordPiece vocabulary file: one token a line, the line number is the id (docs/semantics.md, section 1)."""

    path: Path
    tokens: list[str]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Raises UserError where there is no such file or it is not text. A byte order mark and CRs are no content."""
        if not path.exists():
            raise UserError(
                f"{path}: no such vocabulary; electra-data vocab --corpus SRC --out {path.parent} makes one"
            )
        text = decode(read_bytes(path), path).removesuffix("\n")
        return cls.of(path, [line.strip() for line in text.split("\n")])

    @classmethod
    def of(cls, path: Path, tokens: list[str]) -> Vocabulary:
        """That of `tokens`; the hash is of them, however a file ends its lines."""
        return cls(path, tokens, hashlib.sha256(("\n".join(tokens) + "\n").encode()).hexdigest())

    @property
    def content(self) -> bytes:
        """What a vocab.txt of these tokens holds."""
        return ("\n".join(self.tokens) + "\n").encode()

    @property
    def special(self) -> SpecialTokens:
        ids = {token: number for number, token in enumerate(self.tokens)}
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if missing := [name for name in names if name not in ids]:
            raise UserError(f"{self.path}: not a WordPiece vocabulary for ELECTRA: lacks {', '.join(missing)}")
        return SpecialTokens(*(ids[name] for name in names))


# ------------------------------------------------------------------------------------------------------ manifest


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
    """The name that tensorflow-datasets gives a shard."""
    return f"electra-{split}.tfrecord-{number:05d}-of-{total:05d}"


# ------------------------------------------------------------------------------------------------ a data folder


class DataFolder(NamedTuple):
    """A folder of shards; `manifest` and `vocab_path` are None for one made by the original code."""

    path: Path
    splits: dict[str, list[Path]]
    manifest: Manifest | None
    vocab_path: Path | None

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Finds the shards. Raises UserError where there are none or the manifest names absent ones."""
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; electra-data shard --out {path} makes one")
        if (path / "manifest.json").exists():
            manifest = Manifest.read(path)
            splits = {name: [path / shard.file for shard in shards] for name, shards in manifest.splits.items()}
            if absent := [file.name for files in splits.values() for file in files if not file.exists()]:
                raise UserError(
                    f"{path}: manifest.json names {len(absent)} shards that are not there, the first {absent[0]}: "
                    "copy them, or make the shards again with electra-data shard"
                )
            return cls(path, splits, manifest, path / "vocab.txt")
        originals = sorted(
            (int(match[1]), file) for file in path.iterdir() if (match := _ORIGINAL_NAME.match(file.name))
        )
        if not originals:
            raise UserError(
                f"{path}: neither manifest.json nor pretrain_data.tfrecord-*-of-* there; "
                f"electra-data shard --out {path} makes shards"
            )
        return cls(path, {"train": [file for _, file in originals]}, None, None)


class ShardedExamples:
    """Random access to the examples of several shards as if they were one list."""

    def __init__(self, paths: Sequence[Path], max_seq_length: int, vocab_size: int) -> None:
        self.shards = [Shard(path) for path in paths]
        self._max_seq_length = max_seq_length
        self._vocab_size = vocab_size
        # Each record of a bucket is a request of its own: many at a time.
        self._pool = ThreadPoolExecutor(_REQUESTS) if any(shard.is_remote for shard in self.shards) else None
        self._ends = list(itertools.accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Examples by number -> int32 [len(numbers), 3, max_seq_length]; raises UserError for what cannot train."""
        places = []
        for number in np.asarray(numbers).tolist():
            shard_number = bisect.bisect_right(self._ends, number)
            shard = self.shards[shard_number]
            places.append((shard, number - self._ends[shard_number] + len(shard)))
        fetch = self._pool.map if self._pool else map
        records = list(fetch(lambda place: place[0].framed(place[1]), places))
        examples = np.empty((len(records), len(FEATURES), self._max_seq_length), dtype=np.int32)
        ends = np.cumsum([len(record) for record in records], dtype=np.int64)
        if decode_records(np.frombuffer(b"".join(records), np.uint8), ends, examples) >= 0:
            # Damage, or another writer's form: the plain decoder knows all forms, and says what is wrong.
            for row, (shard, record) in zip(examples, places, strict=True):
                row[:] = decode_example(shard[record], self._max_seq_length, f"{shard.path}: record {record}")
        # A gather clamps silently: an id beyond the table would train as the table's last row.
        largest = examples[:, 0].max(axis=1)
        if (largest >= self._vocab_size).any():
            shard, record = places[int(largest.argmax())]
            raise UserError(
                f"{shard.path}: record {record} holds token id {largest.max()}, but model.vocab_size="
                f"{self._vocab_size}: these shards were made with another vocabulary"
            )
        return examples
