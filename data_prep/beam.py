"""Making shards as an Apache Beam pipeline, for a cluster: Dataflow, Flink, Spark, or one process.

Documents are read, cleaned and made into records by the functions of the local run, so both give the same examples;
which shard an example lies in differs. Needs the extra `beam`.
"""

# Annotations stay text: Beam would choose its coders by them, and that of int has no room for 64 bits without a sign.
from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.build import RecordMaker, ShardJob
from data_prep.chunks import text_hash
from data_prep.clean import Cleaner, CleaningOptions
from data_prep.readers import Corpus
from data_prep.reading import Document, ReaderOptions
from data_prep.shard_folder import make_manifest, refuse_occupied, write_metadata
from data_prep.shards import shard_counts
from data_prep.sources import Source
from electra_flax.data.manifest import Manifest, ShardInfo, shard_name
from electra_flax.data.tfrecord import ShardWriter, index_path
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import parse_json
from electra_flax.formats import counted

try:
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError:
    raise UserError("--runner needs Apache Beam: pip install 'electra-flax[beam]'") from None

RUNNERS = {"direct": "DirectRunner", "dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}
Key = tuple[int, int]  # of a document: its source and its number there, which is the order of the corpus
Paragraphs = list[list[str]]


@dataclass(frozen=True)
class _Summary:
    """What the pipeline writes beside the shards."""

    shards: dict[str, ShardInfo]
    counts: dict[str, int]


def write_shards_with_beam(job: ShardJob, corpus: Corpus, out: str, runner: str, options: str) -> Manifest:
    """Make the folder `out`, local or on gs://; its manifest is written last. Raises UserError for what cannot run."""
    if "near-duplicates" in job.cleaning.steps:
        raise UserError("near-duplicates compares documents in the order of the corpus: only --runner local can")
    vocabulary = Vocabulary.read(job.vocab_dir / "vocab.txt")
    # Not OUT.partial: that may be the unfinished work of a local run.
    folder = out if "://" in out else out + ".beam"
    if folder != out:
        refuse_occupied(Path(out))
        shutil.rmtree(folder, ignore_errors=True)
    elif FileSystems.exists(posixpath.join(out, "manifest.json")):
        raise UserError(f"--out {out}: already holds shards; remove the folder or choose another")
    FileSystems.mkdirs(folder)

    counts = shard_counts(job, corpus.text_bytes)
    names = [(split, shard_name(split, number, count)) for split, count in counts.items() for number in range(count)]
    summary = posixpath.join(folder, "summary.json")
    with beam.Pipeline(options=PipelineOptions([f"--runner={RUNNERS[runner]}", *shlex.split(options)])) as pipeline:
        _build(pipeline, job, corpus, vocabulary, counts, names, folder, summary)
    with FileSystems.open(summary) as file:
        found = parse_json(file.read(), _Summary, summary, "run it again")
    FileSystems.delete([summary])

    infos: dict[str, list[ShardInfo]] = {split: [] for split in counts}
    for shard, (split, _) in enumerate(names):
        infos[split].append(found.shards[str(shard)])
    totals = Counter(found.counts)
    if not sum(info.examples for info in infos["train"]):
        raise UserError(f"the corpus gave no training example ({counted(len(corpus.sources), 'files')})")

    def of(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): n for name, n in sorted(totals.items()) if name.startswith(prefix)}

    malformed = of("malformed ")
    manifest = make_manifest(
        job, corpus, vocabulary, infos, of_source=of("source "), cleaned=of("step "),
        malformed=dict.fromkeys(malformed, "see the workers' logs"),
        pieces=totals["pieces"], unknown=totals["unknown"], discarded=totals["discarded"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as local:
        write_metadata(manifest, vocabulary, Path(local))
        # The manifest last: a bucket has no renames, so it alone says that the folder is whole.
        for path in sorted(Path(local).iterdir(), key=lambda path: path.name == "manifest.json"):
            _write(posixpath.join(folder, path.name), path.read_bytes())
    if folder != out:
        Path(folder).rename(out)
    return manifest


def _write(place: str, content: bytes) -> None:
    with FileSystems.create(place) as file:
        file.write(content)


def _build(
    pipeline: Any, job: ShardJob, corpus: Corpus, vocabulary: Vocabulary, counts: dict[str, int],
    names: list[tuple[str, str]], folder: str, summary: str,
) -> None:  # fmt: skip
    # Without a shuffle after the few sources, a runner would fuse reading with making that list, on one worker.
    sources = list(enumerate(corpus.sources))
    read = (
        pipeline
        | "sources" >> beam.Create(sources)
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.ParDo(_Read(corpus.options)).with_outputs("counts", main="documents")
    )
    cleaned = read.documents | "clean" >> beam.ParDo(_Clean(job.cleaning)).with_outputs("counts", main="documents")
    documents, all_counts = cleaned.documents, [read.counts, cleaned.counts]
    for step, by_sentence in (("dedup-paragraphs", False), ("dedup-sentences", True)):
        if step in job.cleaning.steps:
            documents, dropped = _without_repeats(documents, step, by_sentence)
            all_counts.append(dropped)
    made = documents | "make" >> beam.ParDo(_Make(job, vocabulary, counts)).with_outputs("counts", main="records")
    # An entry of nothing for each shard: one that no record falls into is written too.
    every_shard = pipeline | "shards" >> beam.Create([(shard, None) for shard in range(len(names))])
    infos = (
        (made.records, every_shard)
        | "records" >> beam.Flatten()
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_shard, folder, [name for _, name in names])
    )
    totals = (*all_counts, made.counts) | "counts" >> beam.Flatten() | "sum" >> beam.CombineGlobally(_sum)
    _ = (
        pipeline
        | "once" >> beam.Create([summary])
        | "summary" >> beam.Map(_write_summary, beam.pvalue.AsList(infos), beam.pvalue.AsSingleton(totals))
    )


class _Read(beam.DoFn):
    def __init__(self, options: ReaderOptions) -> None:
        self._options = options

    def process(self, element: tuple[int, Source]) -> Iterator[Any]:
        number, source = element
        corpus = Corpus([source], self._options)
        for ordinal, document in enumerate(corpus.documents()):
            yield (number, ordinal), document
        for path in corpus.malformed:
            yield beam.pvalue.TaggedOutput("counts", {f"malformed {path}": 1})


class _Clean(beam.DoFn):
    def __init__(self, cleaning: CleaningOptions) -> None:
        self._cleaning = cleaning

    def setup(self) -> None:  # on the worker: a splitter's model need not be sent
        self._cleaner = Cleaner(self._cleaning)

    def process(self, element: tuple[Key, Document]) -> Iterator[Any]:
        key, document = element
        self._cleaner.counts.clear()
        paragraphs = self._cleaner.clean(document.lines())
        counts = {f"step {name}": count for name, count in self._cleaner.counts.items()}
        yield beam.pvalue.TaggedOutput("counts", counts | {f"source {key[0]}": int(bool(paragraphs))})
        if paragraphs:
            yield key, paragraphs


def _without_repeats(documents: Any, step: str, by_sentence: bool) -> tuple[Any, Any]:
    """Return documents without the units that appeared earlier in the corpus, and the count of those."""

    def units(element: tuple[Key, Paragraphs]) -> Iterator[tuple[int, tuple[Key, int]]]:
        key, paragraphs = element
        for number, unit in enumerate(_units(paragraphs, by_sentence)):
            yield text_hash(unit), (key, number)

    def later(element: tuple[int, Iterable[tuple[Key, int]]]) -> Iterator[tuple[Key, int]]:
        first = min(element[1])  # keys are places in the corpus, so which one stays is what a local run keeps
        yield from (place for place in element[1] if place != first)

    repeats = (
        documents
        | f"{step}: hash" >> beam.FlatMap(units)
        | f"{step}: group" >> beam.GroupByKey()
        | f"{step}: later" >> beam.FlatMap(later)
    )
    kept = (
        {"documents": documents, "repeats": repeats}
        | f"{step}: join" >> beam.CoGroupByKey()
        | f"{step}: drop" >> beam.FlatMap(_drop, by_sentence)
    )
    return kept, repeats | f"{step}: count" >> beam.Map(lambda _: {f"step {step}": 1})


def _units(paragraphs: Paragraphs, by_sentence: bool) -> list[str]:
    if by_sentence:
        return [sentence for paragraph in paragraphs for sentence in paragraph]
    return ["\n".join(paragraph) for paragraph in paragraphs]


def _drop(element: tuple[Key, dict[str, Any]], by_sentence: bool) -> Iterator[tuple[Key, Paragraphs]]:
    key, found = element
    repeats = set(found["repeats"])
    for paragraphs in found["documents"]:
        numbered = enumerate(_units(paragraphs, by_sentence))
        kept = [unit.split("\n") for number, unit in numbered if number not in repeats]
        if kept:
            yield key, kept


class _Make(beam.DoFn):
    def __init__(self, job: ShardJob, vocabulary: Vocabulary, counts: dict[str, int]) -> None:
        self._job, self._vocabulary, self._counts = job, vocabulary, counts

    def setup(self) -> None:
        self._maker = RecordMaker(self._job, self._vocabulary)

    def process(self, element: tuple[Key, Paragraphs]) -> Iterator[Any]:
        (source, ordinal), paragraphs = element
        made = self._maker.make(_units(paragraphs, True))
        for number, (split, record, num_tokens) in enumerate(made.records):
            first = 0 if split == "train" else self._counts["train"]
            # A hash of where the example comes from: workers may try an element again, and must give it the same place.
            order = hashlib.blake2b(f"{self._job.seed} {source} {ordinal} {number}".encode(), digest_size=8).digest()
            shard = first + int.from_bytes(order, "big") % self._counts[split]
            yield shard, (order[::-1], record, num_tokens)
        counts = {"pieces": made.pieces, "unknown": made.unknown, "discarded": made.discarded}
        yield beam.pvalue.TaggedOutput("counts", counts)


def _write_shard(element: tuple[int, Iterable[Any]], folder: str, names: list[str]) -> tuple[int, dict[str, Any]]:
    """Return a shard's records in the order of their hashes, and its index."""
    shard, found = element
    records = sorted(entry for entry in found if entry is not None)
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / names[shard]
        writer = ShardWriter(path)
        for _, record, _ in records:
            writer.write(record)
        writer.close()
        for written in (index_path(path), path):
            _write(posixpath.join(folder, written.name), written.read_bytes())
        size = path.stat().st_size
    tokens = sum(num_tokens for _, _, num_tokens in records)
    return shard, {"file": names[shard], "examples": len(records), "tokens": tokens, "bytes": size}


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return dict(total)


def _write_summary(path: str, infos: list[tuple[int, dict[str, Any]]], totals: dict[str, int]) -> None:
    _write(path, json.dumps({"shards": dict(infos), "counts": totals}).encode())
