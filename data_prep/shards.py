"""Documents -> TFRecord shards, manifest and the metadata of tensorflow-datasets.

Four stages, each cut into pieces that are made by worker processes and appear whole or not at all, so that a run that
was killed goes on where it was, and the shards are the same bytes whatever the number of workers:

1. chunks/: the corpus read, markup removed, cleaned (chunks.py)
2. chunks/dropped.npy: duplicates over the whole corpus (duplicates.py)
3. records/: a chunk's examples, shuffled and dealt to the shards
4. shards/: what all chunks dealt to a shard, shuffled; this folder becomes --out
"""

import dataclasses
import functools
import gc
import json
import random
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from data_prep import chunks, pool
from data_prep.build import SPLITS, RecordMaker, ShardJob
from data_prep.chunks import CleanTask, chunk_path
from data_prep.duplicates import find_duplicates
from data_prep.readers import Corpus
from data_prep.shard_folder import make_manifest, refuse_occupied, write_metadata
from electra_flax import formats
from electra_flax.data.manifest import Manifest, ShardInfo, shard_name
from electra_flax.data.tfrecord import ShardWriter, index_path
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import read_json, replaced, write_whole
from electra_flax.formats import counted
from electra_flax.runtime.console import progress

_STAGES = ("chunks", "records", "shards")
_SHARD_BYTES = 64 << 20  # of text
_WORK_VERSION = 1  # raised when the same job would make other pieces: unfinished work of a former release is not mixed
_MAX_SHARD_BYTES = 512 << 20  # a shard is shuffled in memory


def write_shards(job: ShardJob, corpus: Corpus, out: Path, num_workers: int) -> Manifest:
    """Make the folder `out`, or nothing. Raises UserError where there is nothing to write or no room for it."""
    vocabulary = Vocabulary.read(job.vocab_dir / "vocab.txt")
    refuse_occupied(out)
    work = out.with_name(out.name + ".partial")
    _begin_or_continue(job, corpus, vocabulary, work)
    try:
        with pool.Pool(num_workers, work / "workers") as workers:
            manifest = _run_stages(job, corpus, vocabulary, work, workers.in_order)
    except UserError:
        if not chunks.is_finished(work / "chunks", 0):  # nothing there that a second run could go on with
            shutil.rmtree(work)
        raise
    # Only now: a worker that starts late, when a small corpus is done already, must still find its folder.
    shards = work / "shards"
    write_metadata(manifest, vocabulary, shards)
    if out.exists():
        out.rmdir()
    shards.rename(out)
    shutil.rmtree(work)
    return manifest


def _run_stages(job: ShardJob, corpus: Corpus, vocabulary: Vocabulary, work: Path, run: Any) -> Manifest:
    summary = _clean(job, corpus, work, run)
    if not summary.documents:
        raise UserError(
            f"the corpus gave no training example ({counted(len(corpus.sources), 'files')}, no text after cleaning): "
            "it is empty, or cleaning dropped all"
        )
    duplicates = _deduplicate(job, work, summary)
    counts = shard_counts(job, summary.bytes)
    totals = _build(job, work, summary, counts, run)
    if not totals.examples[: counts["train"]].sum():
        raise UserError(
            f"the corpus gave no training example ({counted(summary.documents, 'documents')} in "
            f"{counted(len(corpus.sources), 'files')}): "
            "--validation-fraction is too large"
        )
    infos = _shuffle(job, work, counts, totals, run)
    return make_manifest(
        job, corpus, vocabulary, infos, of_source=summary.documents_of_source,
        cleaned=summary.cleaned | duplicates, malformed=summary.malformed,
        pieces=totals.pieces, unknown=totals.unknown, discarded=totals.discarded,
    )  # fmt: skip


def _begin_or_continue(job: ShardJob, corpus: Corpus, vocabulary: Vocabulary, work: Path) -> None:
    """Make the work folder, or take up one of the same job. Raises UserError for another's, or a full disk."""
    identity = {
        "program": _WORK_VERSION,
        **dataclasses.asdict(job),
        "vocab_dir": vocabulary.sha256,
        "reading": dataclasses.asdict(corpus.options),
        "sources": [[source.name, source.size, source.modified] for source in corpus.sources],
    }
    identity = json.loads(json.dumps(identity))
    path = work / "job.json"
    if path.exists():
        before = read_json(path, dict[str, Any], f"remove {work} to start again")
        different = [name for name in identity if identity[name] != before.get(name)]
        has_work = chunks.is_finished(work / "chunks", 0)
        if different and has_work:
            raise UserError(
                f"{work}: holds unfinished work of another job: {', '.join(different)} changed since; give the same "
                "options to go on with it, or remove the folder to start again"
            )
        if not different:
            return
    elif work.exists() and not (work.is_dir() and {file.name for file in work.iterdir()} <= {*_STAGES, "workers"}):
        raise UserError(f"{work}: would hold the unfinished work, but is something else: choose another --out")
    _check_disk(corpus, work)
    shutil.rmtree(work, ignore_errors=True)
    for folder in _STAGES:
        (work / folder).mkdir(parents=True)
    write_whole(path, json.dumps(identity, indent=1).encode())


def _check_disk(corpus: Corpus, work: Path) -> None:
    # Per byte of text: 0.4 for compressed chunks, 0.8 for records, once by chunk and once by shard.
    text = corpus.text_bytes
    existing = next(parent for parent in work.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(existing).free, 2 * text
    if free < needed:
        raise UserError(
            f"{existing}: {formats.size(free)} free, but {formats.size(text)} of text need about "
            f"{formats.size(needed)}: free some, or choose an --out on another disk"
        )


@dataclass(frozen=True)
class _Complete:
    """complete.json: all chunks are there."""

    chunks: NonNegativeInt
    malformed: dict[str, str]
    """{file: why it was left out}"""


@dataclass
class _Summary:
    """All chunks' counts together."""

    chunks: list[chunks.ChunkInfo]
    malformed: dict[str, str]

    @property
    def documents(self) -> int:
        return sum(chunk.documents for chunk in self.chunks)

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for chunk in self.chunks)

    @property
    def documents_of_source(self) -> Counter[str]:
        return sum((Counter(chunk.documents_of_source) for chunk in self.chunks), Counter())

    @property
    def cleaned(self) -> dict[str, int]:
        return dict(sum((Counter(chunk.cleaned) for chunk in self.chunks), Counter[str]()))


def _clean(job: ShardJob, corpus: Corpus, work: Path, run: Any) -> _Summary:
    folder = work / "chunks"
    complete = folder / "complete.json"
    if not complete.exists():
        names = tuple(source.name for source in corpus.sources)
        num_chunks = 0

        def missing() -> Iterator[CleanTask]:
            nonlocal num_chunks
            for number, documents in enumerate(chunks.raw_chunks(corpus)):
                if not chunks.is_finished(folder, number):
                    yield CleanTask(folder, job.cleaning, names, number, documents)
                num_chunks = number + 1
                bar.update(corpus.bytes_read - bar.n)

        with progress(corpus.total_bytes, "1 of 4, reading and cleaning", "B") as bar:
            for _ in run(chunks.clean_chunk, missing()):
                pass
        write_whole(complete, json.dumps(vars(_Complete(num_chunks, corpus.malformed))).encode())
    fix = chunks.anew(folder)
    found = read_json(complete, _Complete, fix)
    paths = (chunk_path(folder, number, "json") for number in range(found.chunks))
    return _Summary([read_json(path, chunks.ChunkInfo, fix) for path in paths], found.malformed)


def _deduplicate(job: ShardJob, work: Path, summary: _Summary) -> dict[str, int]:
    path = work / "chunks/duplicates.json"
    if not path.exists():
        counts: dict[str, int] = {}
        on = [step for step in job.cleaning.steps if step.startswith("dedup") or step == "near-duplicates"]
        if on:
            with progress(len(on), "2 of 4, duplicates", "steps", scaled=True) as bar:
                counts = find_duplicates(
                    work / "chunks", len(summary.chunks), job.cleaning.steps, job.cleaning.near_similarity,
                    sum(chunk.sentences for chunk in summary.chunks), bar.update,
                )  # fmt: skip
        write_whole(path, json.dumps(counts).encode())
    return read_json(path, dict[str, int], chunks.anew(path.parent))


def shard_counts(job: ShardJob, text_bytes: int) -> dict[str, int]:
    """Return shards of each split, for a text of this size. Raises UserError where a shard would not fit memory."""
    wanted = job.num_shards or -(-max(1, round(text_bytes / _SHARD_BYTES)) // job.num_hosts) * job.num_hosts
    if text_bytes / wanted > _MAX_SHARD_BYTES:
        least = -(-text_bytes // _MAX_SHARD_BYTES)
        raise UserError(f"--num-shards {wanted}: too few for {formats.size(text_bytes)} of text: at least {least}")
    counts = {"train": wanted}
    if job.validation_fraction > 0:
        counts["validation"] = max(1, round(wanted * job.validation_fraction))
    return counts


class _BuildTask(NamedTuple):
    job: ShardJob
    work: Path
    counts: dict[str, int]
    number: int
    first_sentence: int
    num_sentences: int


@dataclass
class _Totals:
    """What stage 3 made. The shards of all splits in a row are S."""

    bounds: np.ndarray
    """[chunks, S + 1]: where in a chunk's records those of each shard begin and end, in bytes."""
    examples: np.ndarray
    """[S]"""
    tokens: np.ndarray
    """[S]"""
    pieces: int
    unknown: int
    discarded: int


@functools.cache
def _maker(job: ShardJob) -> RecordMaker:
    return RecordMaker(job, Vocabulary.read(job.vocab_dir / "vocab.txt"))


def _build(job: ShardJob, work: Path, summary: _Summary, counts: dict[str, int], run: Any) -> _Totals:
    firsts = np.cumsum([0, *(chunk.sentences for chunk in summary.chunks)])
    is_built = [chunk_path(work / "records", number, "npz").exists() for number in range(len(summary.chunks))]
    tasks = (
        _BuildTask(job, work, counts, number, int(firsts[number]), chunk.sentences)
        for number, chunk in enumerate(summary.chunks)
        if not is_built[number]
    )
    with progress(summary.bytes, "3 of 4, tokenizing", "B") as bar:
        bar.update(sum(chunk.bytes for chunk, built in zip(summary.chunks, is_built, strict=True) if built))
        for task, _ in run(_build_chunk, tasks):
            bar.update(summary.chunks[task.number].bytes)
    arrays = [chunks.load_arrays(chunk_path(work / "records", number, "npz")) for number in range(len(summary.chunks))]
    pieces, unknown, discarded = sum(found["counts"] for found in arrays)
    return _Totals(
        np.stack([found["bounds"] for found in arrays]),
        sum(found["examples"] for found in arrays),
        sum(found["tokens"] for found in arrays),
        int(pieces), int(unknown), int(discarded),
    )  # fmt: skip


def _build_chunk(task: _BuildTask) -> None:
    """Write `<number>.records`, framed examples in the order of the shards, and then `<number>.npz`."""
    job = task.job
    gc.disable()  # nothing here refers to itself, and walking a million cached words takes time
    maker = _maker(job)
    dropped = None
    if (path := task.work / "chunks/dropped.npy").exists():
        with chunks.damage_named(path):
            all_dropped = np.load(path, mmap_mode="r")
        dropped = all_dropped[task.first_sentence : task.first_sentence + task.num_sentences]
    made: dict[str, list[tuple[bytes, int]]] = {split: [] for split in SPLITS}
    counts = Counter[str](pieces=0, unknown=0, discarded=0)
    for number, document in enumerate(chunks.read_chunk(task.work / "chunks", task.number, dropped)):
        pool.note(f"document {number} of chunk {task.number}, in {task.work / 'chunks'}")
        result = maker.make(document)
        for split, record, num_tokens in result.records:
            made[split].append((record, num_tokens))
        counts.update(pieces=result.pieces, unknown=result.unknown, discarded=result.discarded)
    parts = []
    for split, num_shards in task.counts.items():
        # Of the chunk alone, not of the worker: the bytes do not depend on --workers, nor on which chunks were there.
        rng = random.Random(f"{job.seed} {split} {task.number}")
        rng.shuffle(made[split])
        # Dealt like cards: each shard gets as many, or one more. Which one begins is drawn, or the first shards would
        # get the one more of every chunk.
        first = rng.randrange(num_shards)
        parts += [made[split][(shard - first) % num_shards :: num_shards] for shard in range(num_shards)]
    blobs = [b"".join(record for record, _ in part) for part in parts]
    write_whole(chunk_path(task.work / "records", task.number, "records"), b"".join(blobs))
    with replaced(chunk_path(task.work / "records", task.number, "npz")) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            bounds=np.cumsum([0, *map(len, blobs)]),
            examples=np.array([len(part) for part in parts]),
            tokens=np.array([sum(num_tokens for _, num_tokens in part) for part in parts]),
            counts=np.array([counts["pieces"], counts["unknown"], counts["discarded"]]),
        )
    gc.enable()


class _ShuffleTask(NamedTuple):
    work: Path
    seed: int
    shard: int
    """Among the shards of all splits."""
    name: str


def _shuffle(
    job: ShardJob, work: Path, counts: dict[str, int], totals: _Totals, run: Any
) -> dict[str, list[ShardInfo]]:
    for leftover in (work / "shards").glob("*.partial*"):  # of a run that was killed: this folder becomes --out
        leftover.unlink()
    np.save(work / "records/bounds.npy", totals.bounds)
    names = [(split, shard_name(split, number, count)) for split, count in counts.items() for number in range(count)]
    tasks = (
        _ShuffleTask(work, job.seed, shard, name)
        for shard, (_, name) in enumerate(names)
        if not (work / "shards" / name).exists()
    )
    with progress(int(totals.examples.sum()), "4 of 4, shuffling", "examples", scaled=True) as bar:
        for task, _ in run(_write_shard, tasks):
            bar.update(int(totals.examples[task.shard]))
    infos: dict[str, list[ShardInfo]] = {split: [] for split in counts}
    for shard, (split, name) in enumerate(names):
        size = (work / "shards" / name).stat().st_size
        infos[split].append(ShardInfo(name, int(totals.examples[shard]), int(totals.tokens[shard]), size))
    return infos


def _write_shard(task: _ShuffleTask) -> None:
    """Write all records of a shard, shuffled."""
    pool.note(f"shard {task.name}")
    bounds = np.load(task.work / "records/bounds.npy", mmap_mode="r")
    records: list[bytes] = []
    for number, (start, end) in enumerate(bounds[:, task.shard : task.shard + 2].tolist()):
        path = chunk_path(task.work / "records", number, "records")
        with chunks.damage_named(path), path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
            if len(data) < end - start:
                raise EOFError("cut off")
            records += _framed(data)
    # Each chunk was dealt to all shards and shuffled before: this mixes the chunks, and both together are as good as a
    # shuffle of the whole corpus while one shard at most lies in memory.
    random.Random(f"{task.seed} {task.name}").shuffle(records)
    path = task.work / "shards" / task.name
    writer = ShardWriter(path.with_name(task.name + ".partial"))
    for record in records:
        writer.write(record)
    writer.close()
    # The shard last: where it has its name, a run that goes on takes it as done, and its index is there.
    index_path(writer.path).rename(index_path(path))
    writer.path.rename(path)


def _framed(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        end = position + 12 + length + 4
        yield data[position:end]
        position = end
