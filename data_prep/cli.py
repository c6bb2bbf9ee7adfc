"""electra-data: text -> vocabulary -> shards."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from data_prep import inspect
from data_prep.readers import find_sources, read_documents
from data_prep.shards import ShardJob, write_shards
from data_prep.vocab import train_vocabulary
from electra_flax.config import UserError
from electra_flax.tokenizer import Casing

_SOURCES = "files, folders or globs of UTF-8 text (.txt, .gz); a blank line or the end of a file closes a document"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 something the user can fix (one line says what), 2 usage."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"electra-data: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"electra-data: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="electra-data",
        description="Turns raw text into a WordPiece vocabulary and TFRecord shards for electra-flax pretrain.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    vocab = commands.add_parser(
        "vocab",
        help="learn a WordPiece vocabulary",
        description="Learns a WordPiece vocabulary and writes vocab.txt and the files that ElectraTokenizer loads. "
        "KoELECTRA v3 used --size 35000; 30,000 to 40,000 suits Korean.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    vocab.add_argument("--corpus", nargs="+", required=True, metavar="SRC", help=_SOURCES)
    vocab.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    vocab.add_argument("--size", type=int, default=35_000, metavar="N", help="entries, [unused] slots included")
    vocab.add_argument("--unused", type=int, default=200, metavar="N", help="[unused] slots for domain words")
    vocab.add_argument("--limit-alphabet", type=int, default=6000, metavar="N", help="most characters kept")
    vocab.add_argument("--min-frequency", type=int, default=2, metavar="N", help="rarest pair that is merged")
    vocab.add_argument("--lower-case", action="store_true", help="lower-case the text (English, not Korean)")
    vocab.add_argument("--strip-accents", action="store_true", help="remove accents; refused for Hangul")
    vocab.set_defaults(run=_vocab)

    shard = commands.add_parser(
        "shard",
        help="write TFRecord shards",
        description="Tokenizes the corpus and writes TFRecord shards, manifest.json and the metadata with which "
        "tensorflow-datasets opens the folder. The result does not depend on --workers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    shard.add_argument("--corpus", nargs="+", required=True, metavar="SRC", help=_SOURCES)
    shard.add_argument("--vocab", type=Path, required=True, metavar="DIR", help="folder of electra-data vocab")
    shard.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; must be new")
    shard.add_argument("--max-seq-length", type=int, required=True, metavar="N", help="tokens an example")
    shard.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    shard.add_argument(
        "--validation-fraction", type=float, default=0.01, metavar="F", help="share of documents held out"
    )
    shard.add_argument(
        "--builder", choices=("carry", "original"), default="carry",
        help="carry loses no token; original cuts examples exactly as the original code does",
    )  # fmt: skip
    shard.add_argument("--num-shards", type=int, metavar="N", help="training shards (default: one per 64 MB of text)")
    shard.add_argument("--seed", type=int, default=0, metavar="N", help="seed of segments and split")
    shard.set_defaults(run=_shard)

    show = commands.add_parser(
        "inspect",
        help="show what shards hold",
        description="Prints the manifest, the counts and a few decoded examples in colour.",
    )
    show.add_argument("folder", type=Path, metavar="DIR", help="folder of electra-data shard")
    show.add_argument("--examples", type=int, default=3, metavar="N", help="examples to show (3)")
    show.add_argument("--json", action="store_true", help="the manifest and totals as JSON, no examples")
    show.set_defaults(run=_inspect)
    return parser


def _vocab(args: argparse.Namespace) -> None:
    sources = find_sources(args.corpus)
    total = sum(path.stat().st_size for path in sources)

    def lines() -> Iterator[str]:
        with tqdm(total=total, desc="reading", unit="B", unit_scale=True, mininterval=1) as progress:
            for document in read_documents(sources):
                yield from document.lines
                progress.update(sum(len(line.encode()) + 1 for line in document.lines))

    vocabulary = train_vocabulary(
        lines,
        args.out,
        size=args.size,
        num_unused=args.unused,
        limit_alphabet=args.limit_alphabet,
        min_frequency=args.min_frequency,
        casing=Casing(args.lower_case, args.strip_accents),
        show_progress=sys.stderr.isatty(),
    )
    unused = sum(token.startswith("[unused") for token in vocabulary.tokens)
    print(f"{args.out / 'vocab.txt'}: {len(vocabulary.tokens):,} entries, {unused:,} of them [unused]")


def _shard(args: argparse.Namespace) -> None:
    if args.max_seq_length < 8:
        raise UserError(f"--max-seq-length {args.max_seq_length}: expected at least 8; 128 and 512 are usual")
    if not 0 <= args.validation_fraction < 1:
        raise UserError(f"--validation-fraction {args.validation_fraction}: expected at least 0 and less than 1")
    for name, value in (("--workers", args.workers), ("--num-shards", args.num_shards)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: expected at least 1")
    job = ShardJob(
        args.vocab,
        Casing.read(args.vocab),
        args.builder,
        args.max_seq_length,
        args.validation_fraction,
        args.seed,
    )
    manifest = write_shards(job, find_sources(args.corpus), args.out, args.workers, args.num_shards)
    for split in manifest.splits:
        print(
            f"{args.out} {split}: {manifest.examples(split):,} examples, {manifest.tokens(split):,} tokens, "
            f"{len(manifest.splits[split])} shards"
        )
    if args.validation_fraction and not manifest.examples("validation"):
        documents = sum(int(source["documents"]) for source in manifest.sources)
        print(
            f"warning: none of {documents} documents was held out; raise --validation-fraction "
            f"({args.validation_fraction}) to have held-out metrics",
            file=sys.stderr,
        )
    print(f"[UNK] rate {manifest.unk_rate:.3%}, tokens thrown away {manifest.discarded_tokens:,}")


def _inspect(args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(inspect.summarize(args.folder), ensure_ascii=False, indent=1))
    else:
        inspect.show(args.folder, args.examples, Console())
