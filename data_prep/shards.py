"""Documents -> TFRecord shards, manifest and the metadata of tensorflow-datasets.

The corpus is cut into chunks of whole documents; worker processes turn a chunk into encoded examples, and one
process writes them in order. A chunk's randomness depends on its number alone, so the shards are the same bytes
whatever the number of workers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from tqdm import tqdm

from data_prep.examples import BuilderName, ExampleBuilder
from data_prep.readers import Document, read_documents
from electra_flax.config import UserError
from electra_flax.records import FEATURES, Manifest, ShardInfo, ShardWriter, SpecialTokens, Vocabulary, shard_name
from electra_flax.tokenizer import Casing, build_tokenizer

_CHUNK_CHARACTERS = 500_000
_SHARD_BYTES = 64 << 20  # of source text
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to know."""

    vocab_dir: Path
    casing: Casing
    builder: BuilderName
    max_seq_length: int
    validation_fraction: float
    seed: int


class _Chunk(NamedTuple):
    number: int
    documents: list[Document]


class _ChunkResult(NamedTuple):
    records: dict[str, list[tuple[bytes, int]]]
    """Per split: encoded example and its number of tokens."""
    pieces: int
    unknown: int
    discarded: int


def write_shards(job: ShardJob, sources: list[Path], out: Path, num_workers: int, num_shards: int | None) -> Manifest:
    """Writes everything to `out`, which gets its manifest last. Raises UserError where there is nothing to write."""
    vocabulary = Vocabulary.read(job.vocab_dir / "vocab.txt")
    vocabulary.special  # noqa: B018  refuses a file that is not a WordPiece vocabulary before any work
    total_bytes = sum(path.stat().st_size for path in sources)
    counts = _shard_counts(job, total_bytes, num_shards)
    partial = out.with_name(out.name + ".partial")
    if (out / "manifest.json").exists():
        raise UserError(f"--out {out}: already holds shards; remove the folder or choose another")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    writers = {
        split: [ShardWriter(partial / shard_name(split, i, count)) for i in range(count)]
        for split, count in counts.items()
    }
    tokens = {split: [0] * count for split, count in counts.items()}
    examples = {split: [0] * count for split, count in counts.items()}
    written = Counter[str]()
    pieces = unknown = discarded = 0
    documents = Counter[int]()
    with tqdm(total=total_bytes, desc="sharding", unit="B", unit_scale=True, mininterval=1) as progress:
        for chunk, result in _run(job, _chunks(sources), num_workers):
            documents.update(document.source for document in chunk.documents)
            pieces, unknown = pieces + result.pieces, unknown + result.unknown
            discarded += result.discarded
            for split, records in result.records.items():
                for payload, num_tokens in records:
                    number = written[split] % counts[split]
                    writers[split][number].write(payload)
                    tokens[split][number] += num_tokens
                    examples[split][number] += 1
                    written[split] += 1
            done = sum(len(line.encode()) + 1 for doc in chunk.documents for line in doc.lines)
            progress.update(min(done, total_bytes - progress.n))
    for writer in (writer for split in writers.values() for writer in split):
        writer.close()
    if not written["train"]:
        raise UserError(
            f"the corpus gave no training example ({sum(documents.values())} documents in {len(sources)} files): "
            "it is empty, or --validation-fraction is too large"
        )

    manifest = Manifest(
        max_seq_length=job.max_seq_length,
        vocab_sha256=vocabulary.sha256,
        vocab_size=len(vocabulary.tokens),
        do_lower_case=job.casing.do_lower_case,
        strip_accents=job.casing.strip_accents,
        builder=job.builder,
        seed=job.seed,
        unk_rate=unknown / max(pieces, 1),
        discarded_tokens=discarded,
        sources=[
            {"path": path.name, "bytes": path.stat().st_size, "documents": documents[number]}
            for number, path in enumerate(sources)
        ],
        splits={
            split: [
                ShardInfo(writer.path.name, examples[split][i], tokens[split][i], writer.path.stat().st_size)
                for i, writer in enumerate(writers[split])
            ]
            for split in writers
        },
    )
    shutil.copyfile(vocabulary.path, partial / "vocab.txt")
    _write_tfds_metadata(manifest, partial)
    manifest.write(partial)
    if out.exists():
        out.rmdir() if not any(out.iterdir()) else _refuse_occupied(out)
    partial.rename(out)
    return manifest


def _refuse_occupied(out: Path) -> None:
    raise UserError(f"--out {out}: the folder is not empty; choose a new one")


def _shard_counts(job: ShardJob, total_bytes: int, num_shards: int | None) -> dict[str, int]:
    train = num_shards or max(1, round(total_bytes / _SHARD_BYTES))
    counts = {"train": train}
    if job.validation_fraction > 0:
        counts["validation"] = max(1, round(train * job.validation_fraction))
    return counts


def _chunks(sources: list[Path]) -> Iterator[_Chunk]:
    number, documents, characters = 0, [], 0
    for document in read_documents(sources):
        documents.append(document)
        characters += sum(map(len, document.lines))
        if characters >= _CHUNK_CHARACTERS:
            yield _Chunk(number, documents)
            number, documents, characters = number + 1, [], 0
    if documents:
        yield _Chunk(number, documents)


def _run(job: ShardJob, chunks: Iterator[_Chunk], num_workers: int) -> Iterator[tuple[_Chunk, _ChunkResult]]:
    """Results in the order of the chunks, with at most a few chunks in memory."""
    if num_workers == 1:
        yield from ((chunk, _build_chunk(job, chunk)) for chunk in chunks)
        return
    waiting: deque[tuple[_Chunk, Future[_ChunkResult]]] = deque()
    # Spawned, not forked: the progress bar and the tokenizer have threads, which a fork may leave holding locks.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_build_chunk, job, chunk)))
            if len(waiting) > 2 * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


@functools.cache
def _tokenizer(job: ShardJob) -> tuple[Tokenizer, SpecialTokens]:
    # Parallelism comes from the processes; threads in each would only fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    vocabulary = Vocabulary.read(job.vocab_dir / "vocab.txt")
    return build_tokenizer(vocabulary.tokens, job.casing), vocabulary.special


def _build_chunk(job: ShardJob, chunk: _Chunk) -> _ChunkResult:
    tokenizer, special = _tokenizer(job)
    builders = {
        split: ExampleBuilder(
            job.builder, job.max_seq_length, special, random.Random(f"{job.seed} {split} {chunk.number}")
        )
        for split in SPLITS
    }
    records: dict[str, list[tuple[bytes, int]]] = {split: [] for split in SPLITS}
    pieces = unknown = 0
    for document in chunk.documents:
        encodings = tokenizer.encode_batch_fast(document.lines, add_special_tokens=False)
        sentences = [encoding.ids for encoding in encodings]
        pieces += sum(map(len, sentences))
        unknown += sum(sentence.count(special.unk) for sentence in sentences)
        split = _split_of(document, job)
        records[split] += [
            (example.encode(), example.num_tokens) for example in builders[split].add_document(sentences)
        ]
    discarded = sum(builder.num_discarded for builder in builders.values())
    return _ChunkResult({s: r for s, r in records.items() if r}, pieces, unknown, discarded)


def _split_of(document: Document, job: ShardJob) -> str:
    """Decided by the text itself, so that copies of a document never lie on both sides."""
    digest = hashlib.blake2b("\n".join(document.lines).encode(), digest_size=8, key=str(job.seed).encode())
    return "validation" if int.from_bytes(digest.digest(), "big") < job.validation_fraction * 2**64 else "train"


def _write_tfds_metadata(manifest: Manifest, folder: Path) -> None:
    """features.json and dataset_info.json, with which tfds.builder_from_directory opens the folder."""
    prefix = "tensorflow_datasets.core.features"
    tensor = {
        "pythonClassName": f"{prefix}.tensor_feature.Tensor",
        "tensor": {
            "shape": {"dimensions": [str(manifest.max_seq_length)]},
            "dtype": "int64",
            "encoding": "none",
        },
    }
    features = {
        "pythonClassName": f"{prefix}.features_dict.FeaturesDict",
        "featuresDict": {"features": dict.fromkeys(FEATURES, tensor)},
    }
    info = {
        "name": "electra",
        "version": "1.0.0",
        "description": "ELECTRA pretraining examples made by electra-data shard",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(shard.bytes for shard in shards)),
                "shardLengths": [str(shard.examples) for shard in shards],
            }
            for split, shards in manifest.splits.items()
        ],
    }
    for name, values in (("features.json", features), ("dataset_info.json", info)):
        (folder / name).write_text(json.dumps(values, indent=1) + "\n")
