"""Duplicates over the whole corpus in bounded memory: which sentences of the cleaned chunks to drop.

Hashes are dealt into buckets on disk by their value, so that equal ones meet; a bucket is sorted in memory. The first
occurrence in the order of the corpus stays. Near-duplicates go first, then paragraphs, then sentences, each looking
only at what is left: a text is dropped for the sake of one that stays.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.chunks import SIGNATURE_SIZE, chunk_path, load_arrays
from electra_flax.errors import UserError

_BUCKET_ENTRIES = 4 << 20  # 64 MiB, sorted in memory
_MAX_BUCKETS = 512  # open files, of the 1,024 that a process may have by default
_ENTRY = np.dtype([("hash", "<u8"), ("ordinal", "<u8")])


def find_duplicates(
    folder: Path, num_chunks: int, steps: tuple[str, ...], near_similarity: float, num_sentences: int,
    report: Callable[[], None],
) -> dict[str, int]:  # fmt: skip
    """Write `dropped.npy`, bool [sentences of the corpus]; return how many texts each step dropped."""
    # Renamed when whole: stage 3 takes a dropped.npy that is there for the answer.
    partial = folder / "dropped.partial.npy"
    dropped = np.lib.format.open_memmap(partial, "w+", np.bool_, (num_sentences,))
    counts = {}
    for step, find in (("near-duplicates", _near), ("dedup-paragraphs", _paragraphs), ("dedup-sentences", _sentences)):
        if step in steps:
            report()
            counts[step] = find(folder, num_chunks, dropped, near_similarity)
    dropped.flush()
    partial.rename(folder / "dropped.npy")
    return counts


def _sentences(folder: Path, num_chunks: int, dropped: np.ndarray, _: float) -> int:
    count = 0
    # Marks are made while `repeats` runs, but what it skips was dealt into buckets before its first answer.
    for ordinals, _first in repeats(_arrays(folder, num_chunks, "sentences"), len(dropped), folder, dropped):
        dropped[ordinals] = True
        count += len(ordinals)
    return count


def _paragraphs(folder: Path, num_chunks: int, dropped: np.ndarray, _: float) -> int:
    sizes = _joined(folder, num_chunks, "sentences_of_paragraph")
    starts = np.cumsum(sizes) - sizes
    gone = dropped[starts]  # near-duplicates drop whole documents, so a paragraph's first sentence tells of all of it
    count = 0
    for ordinals, _first in repeats(_arrays(folder, num_chunks, "paragraphs"), len(sizes), folder, gone):
        for ordinal in ordinals:
            dropped[starts[ordinal] : starts[ordinal] + sizes[ordinal]] = True
        count += len(ordinals)
    return count


def _near(folder: Path, num_chunks: int, dropped: np.ndarray, similarity: float) -> int:
    """Drop documents too similar to an earlier one that stays; return how many.

    Their estimated Jaccard similarity is at least `similarity`.
    """
    try:
        from datasketch import MinHashLSH
    except ModuleNotFoundError:
        raise UserError("near-duplicates needs datasketch: pip install 'electra-flax[corpora]'") from None
    # Only its choice of bands is wanted: two signatures are compared where all rows of a band are equal, which is the
    # likelier the more alike they are, with the steepest rise near `similarity`.
    bands = MinHashLSH(threshold=similarity, num_perm=SIGNATURE_SIZE)
    sizes = _joined(folder, num_chunks, "sentences_of_document")
    starts = np.cumsum(sizes) - sizes
    path = folder / "signatures.partial.npy"  # on disk: 512 bytes a document, 5 GB of 10 million
    signatures = np.lib.format.open_memmap(path, "w+", np.uint32, (len(sizes), SIGNATURE_SIZE))
    end = 0
    for found in _arrays(folder, num_chunks, "signatures"):
        signatures[end : end + len(found)] = found
        end += len(found)

    pairs: list[np.ndarray] = []
    for band in range(bands.b):

        def hashes(columns: slice = slice(band * bands.r, (band + 1) * bands.r)) -> Iterator[np.ndarray]:
            for start in range(0, len(signatures), 1 << 16):
                yield _hash_rows(signatures[start : start + (1 << 16), columns])

        for ordinals, firsts in repeats(hashes(), len(sizes), folder, None):
            for start in range(0, len(ordinals), 1 << 14):
                later, earlier = ordinals[start : start + (1 << 14)], firsts[start : start + (1 << 14)]
                alike = (signatures[later] == signatures[earlier]).mean(axis=1) >= similarity
                pairs.append(np.stack([later[alike], earlier[alike]], axis=1))
    # In the order of the later one: whether the earlier one stays is known by then. A pair that several bands found
    # counts once, and a chain a ~ b ~ c keeps c where b is gone already: nothing goes for the sake of what went.
    count = 0
    gone = np.zeros(len(sizes), np.bool_)
    for later, earlier in np.unique(np.concatenate(pairs or [np.zeros((0, 2), np.uint64)]), axis=0):
        if not gone[later] and not gone[earlier]:
            gone[later] = True
            dropped[starts[later] : starts[later] + sizes[later]] = True
            count += 1
    path.unlink()
    return count


def _arrays(folder: Path, num_chunks: int, name: str) -> Iterator[np.ndarray]:
    for number in range(num_chunks):
        yield load_arrays(chunk_path(folder, number, "npz"))[name]


def _joined(folder: Path, num_chunks: int, name: str) -> np.ndarray:
    return np.concatenate(list(_arrays(folder, num_chunks, name))).astype(np.int64)


def _hash_rows(rows: np.ndarray) -> np.ndarray:
    """Return 64 bits of each row of uint32; a polynomial, mixed so that its value deals evenly into buckets."""
    total = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        total = (total + column.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total


def repeats(
    hashes: Iterator[np.ndarray], total: int, folder: Path, gone: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ordinals of hashes that appeared before, ordinals of their first appearance), for hashes in order.

    Ordinals marked in `gone` do not count.
    """
    num_buckets = min(_MAX_BUCKETS, max(1, -(-total // _BUCKET_ENTRIES)))
    buckets = folder / "buckets"
    shutil.rmtree(buckets, ignore_errors=True)  # of a run that was killed
    buckets.mkdir()
    files = [(buckets / str(number)).open("wb") for number in range(num_buckets)]
    start = 0
    for batch in hashes:
        entries = np.empty(len(batch), _ENTRY)
        entries["hash"], entries["ordinal"] = batch, np.arange(start, start + len(batch), dtype=np.uint64)
        start += len(batch)
        if gone is not None:
            entries = entries[~gone[start - len(batch) : start]]
        bucket = entries["hash"] % np.uint64(num_buckets)
        for number in np.unique(bucket):
            files[number].write(entries[bucket == number].tobytes())
    for file in files:
        file.close()
    for number in range(num_buckets):
        entries = np.fromfile(buckets / str(number), _ENTRY)
        entries = entries[np.argsort(entries["hash"], kind="stable")]  # the first of equal ones stays the first
        is_first = np.ones(len(entries), np.bool_)
        is_first[1:] = entries["hash"][1:] != entries["hash"][:-1]
        first = entries["ordinal"][np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]  # of each one's equals
        yield entries["ordinal"][~is_first], first[~is_first]
    shutil.rmtree(buckets)
