"""electra-data: text -> vocabulary -> shards."""

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from data_prep import inspect, vocab_report
from data_prep.build import ShardJob
from data_prep.clean import RECIPES, STEPS, Cleaner, CleaningOptions
from data_prep.readers import READERS, Corpus, is_encoding
from data_prep.reading import ReaderOptions
from data_prep.shards import write_shards
from data_prep.sources import find_sources
from data_prep.vocab import VocabularyOptions, extend_vocabulary, sample_lines, train_vocabulary
from data_prep.vocab_report import MOST_UNKNOWN, why_unknown
from electra_flax import shipped
from electra_flax.config.ranges import MOST_INT32, MOST_UINT32, Range
from electra_flax.data.manifest import Manifest
from electra_flax.data.tokenizer import Casing, tokenizer_files
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import EXIT_CODES, UserError
from electra_flax.files import write_all
from electra_flax.formats import counted
from electra_flax.runtime.console import console, print_json, print_line, progress, write_line
from electra_flax.runtime.ending import run_command
from electra_flax.runtime.flags import Command, Flag, Folder, Parser, Place, exit_codes, given_place, make_parser, parse

_MODEL_MAX_LENGTH = 512
_SIZE, _UNUSED = 35_000, 200
_STEP_NAMES = tuple(step.name for step in STEPS)
_STEPS_HELP = "cleaning steps, in the order in which they run:\n" + "\n".join(
    textwrap.fill(
        step.help, width=74, initial_indent=f"  {step.name:17s} ", subsequent_indent=20 * " ", break_on_hyphens=False
    )
    for step in STEPS
)
_RECIPES_HELP = "recipes:\n" + "\n".join(
    textwrap.fill(
        ", ".join(step.name for step in STEPS if step.name in on) or "no step",
        width=78, initial_indent=f"  {name:17s} ", subsequent_indent=20 * " ", break_on_hyphens=False,
    )
    for name, on in RECIPES.items()
)  # fmt: skip


def _given_vocabulary(text: str) -> Path:
    """Return the folder of a vocabulary that is named: one of electra-data vocab, or a model's, also of an export."""
    folder = Path(shipped.located(given_place(text)))
    places = (folder, *(folder / part for part in shipped.PARTS))
    return next((place for place in places if os.path.exists(place / "vocab.txt")), folder)


_Vocabulary = Annotated[Path, _given_vocabulary, "DIR"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors are one line."""
    command = parse(parser(), argv)
    return run_command("electra-data", command.run, getattr(command, "out", None), command.interrupted)


_END = "\n\n".join([
    "tiny-ko (a model whose vocabulary --vocab takes) and sample (a little Korean text for --corpus) ship with the "
    "package. A file or folder here with the same name comes first.",
    exit_codes({code: text for code, text in EXIT_CODES.items() if code != 75}),
])  # fmt: skip


def parser() -> Parser:
    """Return that of electra-data."""
    text = "Turns raw text into a WordPiece vocabulary and TFRecord shards for electra-flax pretrain."
    return make_parser("electra-data", text, _END, (Vocab, Report, Shard, Inspect))


class Cleaning(Command):
    """Cleaning."""

    clean: Annotated[str, tuple(RECIPES)] = "none"
    """recipe, listed below"""
    with_: Annotated[tuple[str, ...], _STEP_NAMES, "STEP"] = ()
    """steps to add"""
    without: Annotated[tuple[str, ...], _STEP_NAMES, "STEP"] = ()
    """steps to leave out"""
    splitter: Literal["rules", "kiwi"] = "rules"
    """how the step sentences splits"""
    min_characters: Annotated[int, Range(0, 10**6), "N"] = 10
    """shortest sentence that the step short keeps"""
    near_similarity: Annotated[float, Range(0, 0.99, "(]"), "F"] = 0.8  # of equal texts, dedup-sentences is the step
    """similarity from which near-duplicates drops a document, 0 to 0.99"""

    @property
    def cleaning(self) -> CleaningOptions:
        return CleaningOptions.of(
            self.clean, self.with_, self.without, self.splitter, self.min_characters, self.near_similarity
        )


class Reading(Cleaning):
    """Reading."""

    epilog = f"{_STEPS_HELP}\n\n{_RECIPES_HELP}"
    interrupted = "nothing was written"

    corpus: Annotated[tuple[Place, ...], "SRC"]
    """files, folders, globs or gs:// paths, plain or .gz .bz2 .xz .zst: text, JSON lines, JSON, Wikipedia and Namuwiki
    dumps, WikiExtractor output, wikitext, Modu corpus, Parquet; tfds:NAME[:split][:feature]; or sample"""
    format: Annotated[str, ("auto", *READERS), "FORMAT"] = "auto"
    """auto (by the first bytes), text (blank lines between documents), lines (one document per line), file (one
    document per file), wikitext, wikiextractor, jsonl, object, json, wikipedia, namuwiki, modu or parquet"""
    encoding: Annotated[str, "NAME"] = "utf-8"
    """encoding of files without a byte order mark or declaration, such as cp949"""
    text_key: Annotated[str, "KEY"] = "text"
    """key or column that holds the text"""
    strict: bool = False
    """stop at a malformed Modu file instead of skipping it"""

    def read(self) -> Corpus:
        """Return the corpus, of which nothing is read yet."""
        if not is_encoding(self.encoding):
            raise UserError(f"--encoding {self.encoding}: unknown, expected a name such as utf-8, cp949 or utf-16")
        options = ReaderOptions(self.format, self.encoding, self.text_key, self.strict)
        return Corpus(find_sources(self.corpus, _warn), options, _warn)

    def sample(self, megabytes: int) -> list[str]:
        """Return cleaned sentences of the corpus, as many as that holds."""
        corpus, cleaner = self.read(), Cleaner(self.cleaning)

        def sentences() -> Iterator[str]:
            with progress(corpus.total_bytes, "reading", "B") as bar:
                for document in corpus.documents():
                    for paragraph in cleaner.clean(document.lines()):
                        yield from paragraph
                    bar.update(corpus.bytes_read - bar.n)

        return sample_lines(sentences(), megabytes << 20)

    def first_lines(self) -> list[str]:
        """Return enough of the corpus, cleaned, to see what it is."""
        corpus, cleaner = Corpus(find_sources(self.corpus), self.read().options), Cleaner(self.cleaning)
        found: list[str] = []
        for document in corpus.documents():
            found += [sentence for paragraph in cleaner.clean(document.lines()) for sentence in paragraph]
            if sum(map(len, found)) > 200_000:
                break
        return found


def _warn(message: str) -> None:
    write_line(f"warning: {message}")


class Vocab(Reading):
    """Learn a WordPiece vocabulary.

    Learns a WordPiece vocabulary and writes vocab.txt and the files that ElectraTokenizer loads. KoELECTRA v3 used
    --size 35000; 30,000 to 40,000 suits Korean. Give the same cleaning options as to shard; duplicates are not removed
    here.
    """

    example = "electra-data vocab --corpus text/ --out vocab --size 35000 --clean koelectra-v3"

    out: Folder
    """folder to write"""
    size: Annotated[int | None, Range(1, 2**24), "N"] = None
    """entries, [unused] slots included (default: 35000)"""
    unused: Annotated[int | None, Range(0, 2**24), "N"] = None
    """[unused] slots for domain words (default: 200)"""
    algorithm: Literal["wordpiece", "unigram", "bpe"] = "wordpiece"
    """how pieces are learned; unigram and bpe (SentencePiece) are converted to WordPiece"""
    pretokenizer: Literal["none", "mecab"] = "none"
    """mecab: learn within morphemes, as KoELECTRA v3 did; using the vocabulary needs no MeCab"""
    limit_alphabet: Annotated[int | None, Range(1, sys.maxunicode), "N"] = None
    """most characters to keep (default: 6000, or a third of --size if that is less)"""
    min_frequency: Annotated[int, Range(1, MOST_INT32), "N"] = 2
    """lowest frequency of a pair that is merged"""
    extend: _Vocabulary | None = None
    """fill the [unused] entries of this vocabulary with pieces of the corpus; other ids stay"""
    sample_mb: Annotated[int, Range(1, 2**20), "MB"] = 1024
    """most text to learn from, in MB"""
    lower_case: bool = False
    """lower-case the text (English, not Korean)"""
    strip_accents: bool = False
    """remove accents (refused for Hangul)"""
    compare: tuple[_Vocabulary, ...] = ()
    """other vocabularies for the report"""

    def run(self) -> None:
        for name in ("vocab.txt", "manifest.json"):
            if (self.out / name).exists():  # shards are of the vocabulary beside them
                raise UserError(f"--out {self.out}: already has a {name}: remove the folder or choose another")
        of_new = {"--size": self.size, "--unused": self.unused, "--lower-case": self.lower_case or None,
                  "--strip-accents": self.strip_accents or None}  # fmt: skip
        if self.extend and (given := [flag for flag, value in of_new.items() if value is not None]):
            raise UserError(f"{', '.join(given)}: not with --extend {self.extend}, which keeps its own: leave it out")
        size, num_unused = self.size or _SIZE, _UNUSED if self.unused is None else self.unused
        casing = Casing.read(self.extend) if self.extend else Casing(self.lower_case, self.strip_accents)
        options = VocabularyOptions(
            size, num_unused, casing, self.algorithm, self.pretokenizer, self.limit_alphabet, self.min_frequency
        )
        lines = self.sample(self.sample_mb)
        if self.extend:
            base, _ = _read_tokenizer(self.extend)
            vocabulary, new = extend_vocabulary(base, lines, self.out, options, sys.stderr.isatty())
            print_line(f"{len(new):,} entries filled: {' '.join(new[:20])}{' ...' if len(new) > 20 else ''}")
        else:
            vocabulary = train_vocabulary(lines, self.out, options, sys.stderr.isatty())
        unused = sum(token.startswith("[unused") for token in vocabulary.tokens)
        if unused > max(num_unused, len(vocabulary.tokens) // 10) and not self.extend:
            learned = len(vocabulary.tokens) - unused
            _warn(
                f"the corpus gave only {learned:,} of --size {size:,} entries, the rest are [unused]: give more text "
                f"(30 MB or more for 30,000), or --size {learned + num_unused}"
            )
        compared = [*self.compare, *([self.extend] if self.extend else [])]
        found = [(vocabulary, casing), *map(_read_tokenizer, compared)]
        _show_report(found, lines[:2_000_000], self.out, tokenizer_files(vocabulary, casing, _MODEL_MAX_LENGTH))
        print_line(f"{vocabulary.path}: {len(vocabulary.tokens):,} entries, {unused:,} of them [unused]")


class Report(Reading):
    """Compare vocabularies on a text.

    Splits a text with each vocabulary and shows the [UNK] rate, pieces per word and missing characters; writes
    report.json and report.png.
    """

    example = "electra-data report --vocab vocab --compare tiny-ko --corpus text/ --out report"

    vocab: _Vocabulary
    """folder from electra-data vocab or of a model, or tiny-ko"""
    out: Folder
    """folder to write"""
    sample_mb: Annotated[int, Range(1, 2**20), "MB"] = 64
    """most text to split, in MB"""
    compare: tuple[_Vocabulary, ...] = ()
    """other vocabularies for the report"""

    def run(self) -> None:
        found = [_read_tokenizer(folder) for folder in (self.vocab, *self.compare)]
        _show_report(found, self.sample(self.sample_mb), self.out, {})


def _read_tokenizer(folder: Path) -> tuple[Vocabulary, Casing]:
    vocabulary = Vocabulary.read(folder / "vocab.txt")
    vocabulary.special  # noqa: B018  refuses a file that is not a WordPiece vocabulary before any work
    return vocabulary, Casing.read(folder)


def _name_of(vocabulary: Vocabulary) -> str:
    """Return its folder's name; of a part of an export, the export's."""
    folder = Path(os.path.abspath(vocabulary.path.parent))
    return folder.parent.name if folder.name in shipped.PARTS else folder.name


def _show_report(
    found: list[tuple[Vocabulary, Casing]], lines: list[str], out: Path, files: dict[str, str | bytes]
) -> None:
    """Show how the vocabularies split the lines; write that and `files`: all or, where they cannot be, none."""
    usages = [vocab_report.measure(_name_of(vocabulary), vocabulary, casing, lines) for vocabulary, casing in found]
    reports = vocab_report.files(usages)
    write_all(out, {**files, **reports})
    vocab_report.show(usages, console())
    print_line(", ".join(str(out / name) for name in reports))
    if usages[0].unk_rate > MOST_UNKNOWN:
        _warn(f"{usages[0].unk_rate:.1%} of the pieces are [UNK]; below 1% is usual: {why_unknown(*found[0], lines)}")


class Shard(Reading):
    """Write TFRecord shards.

    Tokenizes the corpus and writes TFRecord shards, manifest.json and metadata for tensorflow-datasets. The result does
    not depend on --workers. The same command continues an interrupted one; unfinished work is kept in OUT.partial.
    """

    example = "electra-data shard --corpus text/ --vocab vocab --out shards --max-seq-length 512 --clean koelectra-v3"
    interrupted = "the same command continues"

    vocab: _Vocabulary
    """folder from electra-data vocab or of a model, or tiny-ko"""
    out: Place
    """folder to write; must be new"""
    max_seq_length: Annotated[int, Range(8, 2**20), "N"]
    """tokens per example"""
    workers: Annotated[int, Range(1, 1024), "N"] = os.cpu_count() or 1
    """worker processes"""
    validation_fraction: Annotated[float, Range(0, 1, "[)"), "F"] = 0.01
    """share of the text held out for evaluation"""
    validation_unit: Literal["document", "example"] = "document"
    """unit that is held out; example suits a text of few documents"""
    builder: Literal["carry", "original"] = "carry"
    """carry keeps every token; original cuts examples as the original code does"""
    num_shards: Annotated[int | None, Range(1, 10**5), "N"] = None
    """number of training shards, a multiple of --hosts (default: one per 64 MB of text)"""
    hosts: Annotated[int, Range(1, 2**16), "N"] = 1
    """hosts that will train: the number of shards is a multiple of it"""
    seed: Annotated[int, Range(0, MOST_UINT32), "N"] = 0
    """seed of segments and split"""
    runner: Literal["local", "direct", "dataflow", "flink", "spark"] = "local"
    """local: this machine; others: an Apache Beam pipeline (extra beam)"""
    beam_options: Annotated[str, "STR"] = ""
    """options for Beam, such as '--project=P --region=R'"""

    def run(self) -> None:
        manifest = self._write()
        for split in manifest.splits:
            print_line(
                f"{self.out} {split}: {counted(manifest.examples(split), 'examples')}, "
                f"{manifest.tokens(split):,} tokens, {counted(len(manifest.splits[split]), 'shards')}"
            )
        if self.validation_fraction and not manifest.examples("validation"):
            documents = sum(int(source["documents"]) for source in manifest.sources)
            _warn(
                f"no document of {documents:,} was held out: for held-out metrics raise "
                f"--validation-fraction ({self.validation_fraction}), or give --validation-unit example"
            )
        if manifest.unk_rate > MOST_UNKNOWN:
            _warn(
                f"{manifest.unk_rate:.1%} of the pieces are [UNK], from which nothing is learned; below 1% is usual: "
                f"{why_unknown(*_read_tokenizer(self.vocab), self.first_lines())}"
            )
        for step, count in manifest.cleaning.get("changed_or_dropped", {}).items():
            print(f"{step:17s} {counted(count, 'texts')} changed or dropped")
        print(f"[UNK] rate {manifest.unk_rate:.2%}, discarded tokens {manifest.discarded_tokens:,}")

    def _write(self) -> Manifest:
        job = ShardJob(
            self.vocab, _read_tokenizer(self.vocab)[1], self.builder, self.max_seq_length, self.validation_fraction,
            self.seed, self.validation_unit, self.cleaning, self.num_shards, self.hosts,
        )  # fmt: skip
        if self.runner != "local":
            from data_prep.beam import write_shards_with_beam

            return write_shards_with_beam(job, self.read(), self.out, self.runner, self.beam_options)
        if self.out.startswith("gs://"):
            raise UserError(
                f"--out {self.out}: --runner local writes to a local folder: choose one, and copy it to the bucket "
                "afterwards"
            )
        for place in map(Path, self.corpus):
            if place.is_dir() and Path(self.out).resolve().is_relative_to(place.resolve()):
                raise UserError(f"--out {self.out}: lies in --corpus {place}: choose a folder outside")
        return write_shards(job, self.read(), Path(self.out), self.workers)


class Inspect(Command):
    """Show what shards hold.

    Prints the manifest, totals and a few decoded examples in colour.
    """

    example = "electra-data inspect shards --examples 1"

    folder: Annotated[Folder, Flag(positional=True)]
    """folder from electra-data shard"""
    examples: Annotated[int, Range(0, 10**6), "N"] = 3
    """examples to show"""
    json: bool = False
    """print the manifest and totals as JSON, without examples"""

    def run(self) -> None:
        if self.json:
            print_json(inspect.summarize(self.folder))
        else:
            inspect.show(self.folder, self.examples, console())


if __name__ == "__main__":
    sys.exit(main())
