"""electra-data: text -> vocabulary -> shards."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from data_prep import inspect, vocab_report
from data_prep.build import ShardJob
from data_prep.clean import RECIPES, STEPS, Cleaner, CleaningOptions
from data_prep.readers import READERS, Corpus, is_encoding
from data_prep.reading import ReaderOptions
from data_prep.shards import write_shards
from data_prep.sources import find_sources
from data_prep.vocab import VocabularyOptions, extend_vocabulary, sample_lines, train_vocabulary
from data_prep.vocab_report import MOST_UNKNOWN, why_unknown
from electra_flax.config.ranges import MOST_INT32, MOST_UINT32, in_range
from electra_flax.data.tokenizer import Casing, tokenizer_files
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import EXIT_CODES, UserError, counted
from electra_flax.files import given_path, given_place, write_all
from electra_flax.runtime.console import console, print_json, print_line, progress, write_line
from electra_flax.runtime.ending import Parser, run_command

_MODEL_MAX_LENGTH = 512
_SIZE, _UNUSED = 35_000, 200
_SOURCES = (
    "files, folders, globs or gs:// paths, plain or .gz .bz2 .xz .zst: text, JSON lines, JSON, Wikipedia and Namuwiki "
    "dumps, WikiExtractor's output, wikitext, Modu corpus, Parquet; or tfds:NAME[:split][:feature]"
)
_STEPS_HELP = "steps of cleaning, in the order in which they run:\n" + "\n".join(
    f"  {step.name:17s} {step.help}" for step in STEPS
)
_RECIPES_HELP = "recipes:\n" + "\n".join(
    textwrap.fill(
        ", ".join(step.name for step in STEPS if step.name in on) or "no step",
        width=100, initial_indent=f"  {name:17s} ", subsequent_indent=20 * " ", break_on_hyphens=False,
    )
    for name, on in RECIPES.items()
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors are one line."""
    args = _parser().parse_args(argv)
    return run_command("electra-data", lambda: args.run(args), getattr(args, "out", None), args.interrupted)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any, and text of several lines as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False, [], "") else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    """What a corpus is and how it is cleaned; the same for every command that reads one."""
    parser.epilog = f"{_STEPS_HELP}\n\n{_RECIPES_HELP}"
    parser.formatter_class = _Help
    parser.add_argument("--corpus", type=given_place, nargs="+", required=True, metavar="SRC", help=_SOURCES)
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--format", choices=("auto", *READERS), default="auto",
        help="auto looks at the first bytes; text: blank lines between documents, lines: a document a line, file: one",
    )  # fmt: skip
    reading.add_argument(
        "--encoding",
        default="utf-8",
        metavar="NAME",
        help="of files without a byte order mark or declaration, such as cp949",
    )
    reading.add_argument("--text-key", default="text", metavar="KEY", help="key or column that holds the text")
    reading.add_argument("--strict", action="store_true", help="end at a malformed Modu file instead of skipping it")
    cleaning = parser.add_argument_group("cleaning")
    names = [step.name for step in STEPS]
    cleaning.add_argument("--clean", choices=RECIPES, default="none", help="recipe, see below")
    cleaning.add_argument(
        "--with", nargs="+", choices=names, default=[], metavar="STEP", dest="with_", help="add steps"
    )
    cleaning.add_argument("--without", nargs="+", choices=names, default=[], metavar="STEP", help="leave steps out")
    cleaning.add_argument("--splitter", choices=("rules", "kiwi"), default="rules", help="of the step `sentences`")
    cleaning.add_argument(
        "--min-characters", type=in_range(int, 0, 10**6), default=10, metavar="N", help="of the step `short`"
    )
    cleaning.add_argument(
        "--near-similarity",
        type=in_range(float, 0, 0.99, "(]"),  # of equal texts, dedup-sentences is the step
        default=0.8,
        metavar="F",
        help="of `near-duplicates`, 0 to 0.99",
    )


def _corpus(args: argparse.Namespace) -> Corpus:
    if not is_encoding(args.encoding):
        raise UserError(f"--encoding {args.encoding}: unknown, expected a name such as utf-8, cp949 or utf-16")
    options = ReaderOptions(args.format, args.encoding, args.text_key, args.strict)
    return Corpus(find_sources(args.corpus, _warn), options, _warn)


def _warn(message: str) -> None:
    write_line(f"warning: {message}")


def _cleaning(args: argparse.Namespace) -> CleaningOptions:
    return CleaningOptions.of(
        args.clean, args.with_, args.without, args.splitter, args.min_characters, args.near_similarity
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="electra-data",
        allow_abbrev=False,
        description="Turns raw text into a WordPiece vocabulary and TFRecord shards for electra-flax pretrain.",
        epilog="exit codes: " + "; ".join(f"{code} {EXIT_CODES[code]}" for code in (0, 1, 2, 3, 70, 130)),
    )
    parser.add_argument("--version", action="version", version=f"electra-data {version('electra-flax')}")
    commands = parser.add_subparsers(dest="command", required=True)

    vocab = commands.add_parser(
        "vocab",
        allow_abbrev=False,
        help="learn a WordPiece vocabulary",
        description="Learns a WordPiece vocabulary and writes vocab.txt and the files that ElectraTokenizer loads. "
        "KoELECTRA v3 used --size 35000; 30,000 to 40,000 suits Korean. Give the cleaning that shard gets; duplicates "
        "are not looked for here.",
    )
    _add_corpus(vocab)
    vocab.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder to write")
    vocab.add_argument(
        "--size", type=in_range(int, 1, 2**24), metavar="N", help=f"entries, [unused] slots included (default: {_SIZE})"
    )
    vocab.add_argument(
        "--unused",
        type=in_range(int, 0, 2**24),
        metavar="N",
        help=f"[unused] slots for domain words (default: {_UNUSED})",
    )
    vocab.add_argument(
        "--algorithm", choices=("wordpiece", "unigram", "bpe"), default="wordpiece",
        help="what learns the pieces; SentencePiece's unigram and bpe are converted to WordPiece",
    )  # fmt: skip
    vocab.add_argument(
        "--pretokenizer", choices=("none", "mecab"), default="none",
        help="mecab: learn within morphemes, as KoELECTRA v3 did; at run time no MeCab is needed",
    )  # fmt: skip
    vocab.add_argument(
        "--limit-alphabet", type=in_range(int, 1, sys.maxunicode), metavar="N",
        help="most characters kept (default: 6000, a third of --size if less)",
    )  # fmt: skip
    vocab.add_argument(
        "--min-frequency", type=in_range(int, 1, MOST_INT32), default=2, metavar="N", help="rarest pair that is merged"
    )
    vocab.add_argument(
        "--extend", type=given_path, metavar="DIR",
        help="fill the [unused] entries of this vocabulary with pieces of the corpus; all other ids stay",
    )  # fmt: skip
    vocab.add_argument(
        "--sample-mb", type=in_range(int, 1, 2**20), default=1024, metavar="MB",
        help="most text that is kept to learn from",
    )  # fmt: skip
    vocab.add_argument("--lower-case", action="store_true", help="lower-case the text (English, not Korean)")
    vocab.add_argument("--strip-accents", action="store_true", help="remove accents; refused for Hangul")
    _add_report(vocab)
    vocab.set_defaults(run=_vocab, interrupted="nothing was kept")

    report = commands.add_parser(
        "report",
        allow_abbrev=False,
        help="compare vocabularies on a text",
        description="Splits a text with vocabularies and shows [UNK] rate, pieces per word and what is missing; writes "
        "report.json and report.png.",
    )
    _add_corpus(report)
    report.add_argument("--vocab", type=given_path, required=True, metavar="DIR", help="folder of electra-data vocab")
    report.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder to write")
    report.add_argument(
        "--sample-mb", type=in_range(int, 1, 2**20), default=64, metavar="MB", help="most text that is split"
    )
    _add_report(report)
    report.set_defaults(run=_report, interrupted="nothing was kept")

    shard = commands.add_parser(
        "shard",
        allow_abbrev=False,
        help="write TFRecord shards",
        description="Tokenizes the corpus and writes TFRecord shards, manifest.json and the metadata with which "
        "tensorflow-datasets opens the folder. The result does not depend on --workers. A run that was ended goes on "
        "when the same command is given again; unfinished work lies in OUT.partial.",
    )
    _add_corpus(shard)
    shard.add_argument("--vocab", type=given_path, required=True, metavar="DIR", help="folder of electra-data vocab")
    shard.add_argument("--out", type=given_place, required=True, metavar="DIR", help="folder to write; must be new")
    shard.add_argument(
        "--max-seq-length", type=in_range(int, 8, 2**20), required=True, metavar="N", help="tokens an example"
    )
    shard.add_argument(
        "--workers", type=in_range(int, 1, 1024), default=os.cpu_count() or 1, metavar="N", help="processes"
    )
    shard.add_argument(
        "--validation-fraction",
        type=in_range(float, 0, 1, "[)"),
        default=0.01,
        metavar="F",
        help="share of documents held out",
    )
    shard.add_argument(
        "--builder", choices=("carry", "original"), default="carry",
        help="carry loses no token; original cuts examples exactly as the original code does",
    )  # fmt: skip
    shard.add_argument(
        "--num-shards", type=in_range(int, 1, 10**5), metavar="N",
        help="training shards, a multiple of --hosts (default: one per 64 MB of text)",
    )  # fmt: skip
    shard.add_argument(
        "--hosts", type=in_range(int, 1, 2**16), default=1, metavar="N",
        help="machines that will train: the number of shards is a multiple of it",
    )  # fmt: skip
    shard.add_argument(
        "--seed", type=in_range(int, 0, MOST_UINT32), default=0, metavar="N", help="seed of segments and split (0)"
    )
    shard.add_argument(
        "--runner", choices=("local", "direct", "dataflow", "flink", "spark"), default="local",
        help="local: processes of this machine; the others: an Apache Beam pipeline (extra beam)",
    )  # fmt: skip
    shard.add_argument("--beam-options", default="", metavar="STR", help="for Beam, such as '--project=P --region=R'")
    shard.set_defaults(run=_shard, interrupted="the same command goes on with what is done")

    show = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="show what shards hold",
        description="Prints the manifest, the counts and a few decoded examples in colour.",
    )
    show.add_argument("folder", type=given_path, metavar="DIR", help="folder of electra-data shard")
    show.add_argument("--examples", type=in_range(int, 0, 10**6), default=3, metavar="N", help="examples to show (3)")
    show.add_argument("--json", action="store_true", help="the manifest and totals as JSON, no examples")
    show.set_defaults(run=_inspect, interrupted="")
    return parser


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compare", type=given_path, nargs="+", default=[], metavar="DIR", help="other vocabularies to set beside it"
    )


def _sample(args: argparse.Namespace) -> list[str]:
    """Cleaned sentences of the corpus, as many as --sample-mb holds."""
    corpus, cleaner = _corpus(args), Cleaner(_cleaning(args))

    def sentences() -> Iterator[str]:
        with progress(corpus.total_bytes, "reading", "B", scaled=True) as bar:
            for document in corpus.documents():
                for paragraph in cleaner.clean(document.lines()):
                    yield from paragraph
                bar.update(corpus.bytes_read - bar.n)

    return sample_lines(sentences(), args.sample_mb << 20)


def _vocab(args: argparse.Namespace) -> None:
    for name in ("vocab.txt", "manifest.json"):
        if (args.out / name).exists():  # shards are of the vocabulary beside them
            raise UserError(f"--out {args.out}: already holds a {name}: remove the folder or choose another")
    of_new = {"--size": args.size, "--unused": args.unused, "--lower-case": args.lower_case or None,
              "--strip-accents": args.strip_accents or None}  # fmt: skip
    if args.extend and (given := [flag for flag, value in of_new.items() if value is not None]):
        raise UserError(f"{', '.join(given)}: of a new vocabulary; --extend {args.extend} has its own: leave it out")
    size, num_unused = args.size or _SIZE, _UNUSED if args.unused is None else args.unused
    casing = Casing.read(args.extend) if args.extend else Casing(args.lower_case, args.strip_accents)
    options = VocabularyOptions(
        size, num_unused, casing, args.algorithm, args.pretokenizer, args.limit_alphabet, args.min_frequency
    )
    lines = _sample(args)
    if args.extend:
        base, _ = _read_tokenizer(args.extend)
        vocabulary, new = extend_vocabulary(base, lines, args.out, options, sys.stderr.isatty())
        print_line(f"{len(new):,} entries filled: {' '.join(new[:20])}{' ...' if len(new) > 20 else ''}")
    else:
        vocabulary = train_vocabulary(lines, args.out, options, sys.stderr.isatty())
    unused = sum(token.startswith("[unused") for token in vocabulary.tokens)
    if unused > max(num_unused, len(vocabulary.tokens) // 10) and not args.extend:
        learned = len(vocabulary.tokens) - unused
        _warn(
            f"the corpus gave {learned:,} entries of the {size:,} of --size, the rest are [unused]: give "
            f"more text (30 MB and more for 30,000), or --size {learned + num_unused}"
        )
    compared = [*args.compare, *([args.extend] if args.extend else [])]
    found = [(vocabulary, casing), *map(_read_tokenizer, compared)]
    _show_report(found, lines[:2_000_000], args.out, tokenizer_files(vocabulary, casing, _MODEL_MAX_LENGTH))
    print_line(f"{vocabulary.path}: {len(vocabulary.tokens):,} entries, {unused:,} of them [unused]")


def _report(args: argparse.Namespace) -> None:
    found = [_read_tokenizer(folder) for folder in (args.vocab, *args.compare)]
    _show_report(found, _sample(args), args.out, {})


def _read_tokenizer(folder: Path) -> tuple[Vocabulary, Casing]:
    vocabulary = Vocabulary.read(folder / "vocab.txt")
    vocabulary.special  # noqa: B018  refuses a file that is not a WordPiece vocabulary
    return vocabulary, Casing.read(folder)


def _show_report(
    found: list[tuple[Vocabulary, Casing]], lines: list[str], out: Path, files: dict[str, str | bytes]
) -> None:
    """Shows how the vocabularies split the lines, and writes that and `files`: all or, where they cannot be, none."""
    usages = [
        vocab_report.measure(os.path.basename(os.path.abspath(vocabulary.path.parent)), vocabulary, casing, lines)
        for vocabulary, casing in found
    ]
    reports = vocab_report.files(usages)
    write_all(out, {**files, **reports})
    vocab_report.show(usages, console())
    print_line(", ".join(str(out / name) for name in reports))
    if usages[0].unk_rate > MOST_UNKNOWN:
        _warn(f"{usages[0].unk_rate:.1%} of the pieces are [UNK]; below 1 % is usual: {why_unknown(*found[0], lines)}")


def _shard(args: argparse.Namespace) -> None:
    job = ShardJob(
        args.vocab,
        _read_tokenizer(args.vocab)[1],
        args.builder,
        args.max_seq_length,
        args.validation_fraction,
        args.seed,
        _cleaning(args),
        args.num_shards,
        args.hosts,
    )
    if args.runner == "local":
        if args.out.startswith("gs://"):
            raise UserError(f"--out {args.out}: --runner local writes to a disk; copy the folder there when it is done")
        for place in map(Path, args.corpus):
            if place.is_dir() and Path(args.out).resolve().is_relative_to(place.resolve()):
                raise UserError(
                    f"--out {args.out}: lies in --corpus {place}, whose files are read: name another folder"
                )
        manifest = write_shards(job, _corpus(args), Path(args.out), args.workers)
    else:
        from data_prep.beam import write_shards_with_beam

        manifest = write_shards_with_beam(job, _corpus(args), args.out, args.runner, args.beam_options)
    for split in manifest.splits:
        print_line(
            f"{args.out} {split}: {counted(manifest.examples(split), 'examples')}, {manifest.tokens(split):,} tokens, "
            f"{counted(len(manifest.splits[split]), 'shards')}"
        )
    if args.validation_fraction and not manifest.examples("validation"):
        documents = sum(int(source["documents"]) for source in manifest.sources)
        _warn(
            f"none of {counted(documents, 'documents')} was held out; raise --validation-fraction "
            f"({args.validation_fraction}) to have held-out metrics"
        )
    if manifest.unk_rate > MOST_UNKNOWN:
        _warn(
            f"{manifest.unk_rate:.1%} of the pieces are [UNK], of which nothing can be learned; below 1 % is usual: "
            + why_unknown(*_read_tokenizer(args.vocab), _first_lines(args))
        )
    for step, count in manifest.cleaning.get("changed_or_dropped", {}).items():
        print(f"{step:17s} {counted(count, 'texts')}")
    print(f"[UNK] rate {manifest.unk_rate:.3%}, tokens thrown away {manifest.discarded_tokens:,}")


def _first_lines(args: argparse.Namespace) -> list[str]:
    """Enough of the corpus, cleaned, to see what it is."""
    corpus, cleaner = Corpus(find_sources(args.corpus), _corpus(args).options), Cleaner(_cleaning(args))
    found: list[str] = []
    for document in corpus.documents():
        found += [sentence for paragraph in cleaner.clean(document.lines()) for sentence in paragraph]
        if sum(map(len, found)) > 200_000:
            break
    return found


def _inspect(args: argparse.Namespace) -> None:
    if args.json:
        print_json(inspect.summarize(args.folder))
    else:
        inspect.show(args.folder, args.examples, console())


if __name__ == "__main__":
    sys.exit(main())
