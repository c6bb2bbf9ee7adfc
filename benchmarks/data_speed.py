"""Pieces per second of making shards: ours with one worker and two, and the pure Python tokenizer of transformers.

The last stands in for the original code: its tokenizer and ours are the same algorithm, and it feeds the same example
builder and writes the same records. Ours runs without cleaning, like the other, and with KoELECTRA v3's recipe,
where pieces are those that are left. Each contestant is a process of its own over the same text, and each round runs
all of them.

    python benchmarks/data_speed.py --corpus TEXT... --vocab DIR --out runs/bench
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_prep.cli import main as electra_data
from data_prep.examples import ExampleBuilder
from data_prep.readers import Corpus
from data_prep.sources import find_sources
from electra_flax.data.manifest import Manifest
from electra_flax.data.tfrecord import ShardWriter, frame
from electra_flax.data.vocabulary import Vocabulary

LENGTH = 128
# The slow tokenizer is timed on the first part only: it would take minutes a round.
SLOW_CHARACTERS = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, help="text")
    parser.add_argument("--vocab", type=Path, required=True, help="folder of electra-data vocab")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run (3)")
    parser.add_argument("--out", type=Path, required=True, help="folder for data_speed.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(slow(args) if args.worker == "slow" else ours(args, *args.worker.split())))
        return 0
    answers: dict[str, list[dict]] = {}
    for number in range(args.rounds):
        for name in ("1 none", "2 none", "1 koelectra-v3", "2 koelectra-v3", "slow"):
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            answers.setdefault(name, []).append(json.loads(output.splitlines()[-1]))
        shown = ", ".join(f"{name}: {found[-1]['pieces_per_second']:,.0f} pieces/s" for name, found in answers.items())
        print(f"round {number + 1} of {args.rounds}: {shown}", file=sys.stderr)
    rate = {name: statistics.median(a["pieces_per_second"] for a in found) for name, found in answers.items()}
    result = {
        "pieces_per_second": rate,
        "times_the_slow_tokenizer": rate["1 none"] / rate["slow"],
        "times_faster_with_two_workers": {
            recipe: rate[f"2 {recipe}"] / rate[f"1 {recipe}"] for recipe in ("none", "koelectra-v3")
        },
        "answers": answers,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "data_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def ours(args: argparse.Namespace, workers: str, recipe: str) -> dict:
    """Run electra-data shard, from files to published shards. Pieces are those that are kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shards"
        command = ["shard", "--vocab", str(args.vocab), "--out", str(out), "--max-seq-length", str(LENGTH)]
        command += ["--clean", recipe, "--workers", workers]
        started = time.perf_counter()
        assert electra_data([*command, "--corpus", *args.corpus]) == 0
        seconds = time.perf_counter() - started
        manifest = Manifest.read(out)
        special = sum(manifest.examples(split) for split in manifest.splits)
        tokens = sum(manifest.tokens(split) for split in manifest.splits) - 3 * special
    return answer(tokens, seconds)


def slow(args: argparse.Namespace) -> dict:
    """Run transformers' ElectraTokenizer, line by line."""
    from transformers import ElectraTokenizer

    vocabulary = Vocabulary.read(args.vocab / "vocab.txt")
    tokenizer = ElectraTokenizer(str(vocabulary.path), do_lower_case=False)
    builder = ExampleBuilder("original", LENGTH, vocabulary.special, random.Random(0))
    pieces = characters = 0
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder) / "shard")
        started = time.perf_counter()
        for document in Corpus(find_sources(args.corpus)).documents():
            sentences = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line)) for line in document.lines()]
            pieces += sum(map(len, sentences))
            for example in builder.add_document(sentences):
                writer.write(frame(example.encode(LENGTH)))
            characters += len(document.text)
            if characters > SLOW_CHARACTERS:
                break
        seconds = time.perf_counter() - started
        writer.close()
    return answer(pieces, seconds)


def answer(pieces: int, seconds: float) -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"pieces": pieces, "seconds": seconds, "pieces_per_second": pieces / seconds, "peak_mib": peak}


if __name__ == "__main__":
    sys.exit(main())
