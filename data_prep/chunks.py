"""The cleaned corpus on disk: numbered chunks of whole documents, each made once, in any order, by any worker.

A chunk is `<number>.zst` (sentences a line, a blank line between documents), `<number>.npz` with what duplicates are
found by, and, written last, `<number>.json` with its counts: a chunk with one is finished. What a chunk holds depends
on its number alone, never on the number of workers.
"""

import hashlib
import io
import json
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep import pool
from data_prep.clean import Cleaner, CleaningOptions
from data_prep.readers import Corpus
from data_prep.reading import Document
from data_prep.sources import zstd
from electra_flax.errors import UserError
from electra_flax.files import read_bytes, replaced, write_whole

_CHUNK_CHARACTERS = 1_000_000
SIGNATURE_SIZE = 128
_SHINGLE_CHARACTERS = 5
# What numpy, zipfile and zstd raise for files that were cut or overwritten; pickled arrays are a ValueError.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zstd.ZstdError, struct.error)


class CleanTask(NamedTuple):
    """What a worker needs to clean a chunk."""

    folder: Path
    cleaning: CleaningOptions
    paths: tuple[str, ...]
    """Of the sources, for messages."""
    number: int
    documents: list[Document]
    """As they were read."""


@dataclass(frozen=True)
class ChunkInfo:
    """Counts of a cleaned chunk (`<number>.json`)."""

    documents: int
    sentences: int
    paragraphs: int
    bytes: int
    """Of text, decompressed."""
    documents_of_source: dict[str, int]
    cleaned: dict[str, int]
    """How many texts each step of cleaning changed or dropped."""


def raw_chunks(corpus: Corpus) -> Iterator[list[Document]]:
    """Yield the corpus in chunks of about a million characters."""
    # By characters read, before any cleaning: where a chunk ends must not depend on what workers make of it, or a run
    # that goes on would cut the corpus elsewhere and lose or double documents.
    documents, characters = list[Document](), 0
    for document in corpus.documents():
        documents.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield documents
            documents, characters = [], 0
    if documents:
        yield documents


def is_finished(folder: Path, number: int) -> bool:
    return chunk_path(folder, number, "json").exists()


def chunk_path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:08d}.{kind}"


def clean_chunk(task: CleanTask) -> None:
    """Remove markup, clean, and write the chunk."""
    cleaner = Cleaner(task.cleaning)
    texts: list[str] = []
    sizes: dict[str, list[int]] = {"sentences_of_document": [], "sentences_of_paragraph": []}
    hashes: dict[str, list[int]] = {"sentences": [], "paragraphs": []}
    signatures = []
    sources = Counter[str]()
    steps = task.cleaning.steps
    for number, document in enumerate(task.documents):
        pool.note(f"document {number} of chunk {task.number}, from {task.paths[document.source]}")
        paragraphs = cleaner.clean(document.lines())
        if not paragraphs:
            continue
        sentences = [sentence for paragraph in paragraphs for sentence in paragraph]
        texts.append("\n".join(sentences))
        sources[str(document.source)] += 1
        sizes["sentences_of_document"].append(len(sentences))
        sizes["sentences_of_paragraph"] += map(len, paragraphs)
        if "dedup-sentences" in steps:
            hashes["sentences"] += map(text_hash, sentences)
        if "dedup-paragraphs" in steps:
            hashes["paragraphs"] += (text_hash("\n".join(paragraph)) for paragraph in paragraphs)
        if "near-duplicates" in steps:
            signatures.append(signature(texts[-1]))
    text = "\n\n".join(texts).encode()
    info = ChunkInfo(
        len(texts), sum(sizes["sentences_of_document"]), len(sizes["sentences_of_paragraph"]), len(text),
        dict(sources), dict(cleaner.counts),
    )  # fmt: skip
    write_whole(chunk_path(task.folder, task.number, "zst"), zstd.compress(text, 1))
    arrays: dict[str, Any] = {name: np.asarray(values, np.int32) for name, values in sizes.items()}
    arrays |= {name: np.asarray(values, np.uint64) for name, values in hashes.items()}
    with replaced(chunk_path(task.folder, task.number, "npz")) as unfinished, unfinished.open("wb") as file:
        np.savez(file, signatures=np.asarray(signatures, np.uint32).reshape(-1, SIGNATURE_SIZE), **arrays)
    # Last: it says that the chunk is finished.
    write_whole(chunk_path(task.folder, task.number, "json"), json.dumps(vars(info)).encode())


def read_chunk(folder: Path, number: int, dropped: np.ndarray | None) -> Iterator[list[str]]:
    """Yield documents of sentences, less the sentences marked in `dropped` [sentences] and documents that lose all."""
    path = chunk_path(folder, number, "zst")
    with damage_named(path):
        text = zstd.decompress(read_bytes(path)).decode()
    start = 0
    for document in text.split("\n\n") if text else []:
        sentences = document.split("\n")
        if dropped is not None:
            keep = ~dropped[start : start + len(sentences)]
            start += len(sentences)
            sentences = [sentence for sentence, kept in zip(sentences, keep, strict=True) if kept]
        if sentences:
            yield sentences


def load_arrays(path: Path) -> dict[str, Any]:
    """Return what np.savez wrote. Raises UserError where it is damaged."""
    # From bytes in memory: np.load of a path reads lazily, and damage would show far from where it is named.
    with damage_named(path), np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as arrays:
        return dict(arrays)


def anew(folder: Path) -> str:
    """Return what to do about a damaged piece of unfinished work."""
    return f"remove {folder.parent} to start again"


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise UserError, which names it, for unfinished work that cannot be read as what it is."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}): {anew(path.parent)}") from None


def text_hash(text: str) -> int:
    """Return 64 bits: among 300 million sentences, about one pair in a hundred corpora is taken for equal by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def signature(text: str) -> np.ndarray:
    """Return MinHash of the text's runs of five characters, uint32 [SIGNATURE_SIZE]."""
    from datasketch import MinHash

    runs = {text[start : start + _SHINGLE_CHARACTERS] for start in range(max(1, len(text) - _SHINGLE_CHARACTERS + 1))}
    minhash = MinHash(SIGNATURE_SIZE, seed=1)
    minhash.update_batch([run.encode() for run in runs])
    return np.asarray(minhash.digest(), np.uint32)
