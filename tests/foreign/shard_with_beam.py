"""Run by an environment with Apache Beam: makes the same shards with Beam's direct runner and locally, and compares.

usage: shard_with_beam.py CORPUS VOCAB FOLDER
"""

import json
import sys
from collections import Counter
from pathlib import Path

from data_prep.cli import main
from electra_flax.data.manifest import Manifest
from electra_flax.data.shards import DataFolder
from electra_flax.data.tfrecord import Shard

corpus, vocab, folder = sys.argv[1:]
command = ["shard", "--corpus", corpus, "--vocab", vocab, "--max-seq-length", "64", "--validation-fraction", "0.1"]
command += ["--num-shards", "3", "--clean", "koelectra-v3", "--with", "dedup-paragraphs", "--seed", "3"]
found = {}
for runner in ("local", "direct"):
    out = f"{folder}/{runner}"
    assert main([*command, "--out", out, "--runner", runner, "--workers", "1"]) == 0
    data, manifest = DataFolder.open(Path(out)), Manifest.read(Path(out))
    records = {
        split: Counter(shard[number] for path in paths for shard in [Shard(path)] for number in range(len(shard)))
        for split, paths in data.splits.items()
    }
    found[runner] = (records, manifest)
local, beam = found["local"], found["direct"]
print(json.dumps({
    "same_examples": local[0] == beam[0],
    "examples": {split: records.total() for split, records in beam[0].items()},
    "same_counts": {
        name: getattr(local[1], name) == getattr(beam[1], name)
        for name in ("unk_rate", "discarded_tokens", "sources", "cleaning")
    },
    "dropped": beam[1].cleaning["changed_or_dropped"],
}))  # fmt: skip
