"""A folder of shards beside the shards: manifest.json, the vocabulary and the metadata of tensorflow-datasets."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from data_prep.build import ShardJob
from data_prep.readers import Corpus
from electra_flax.data.example import FEATURES
from electra_flax.data.manifest import CleaningInfo, Manifest, ShardInfo, SourceInfo
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import read_bytes, write_all


def refuse_occupied(out: Path) -> None:
    """Raise UserError where `out` is neither new nor an empty folder, or has no name of its own, as . and /."""
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: expected the name of a new folder")
    if (out / "manifest.json").exists():
        raise UserError(f"--out {out}: already holds shards; remove the folder or choose another")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: the folder is not empty; choose a new one")


def make_manifest(
    job: ShardJob, corpus: Corpus, vocabulary: Vocabulary, infos: dict[str, list[ShardInfo]], *,
    of_source: Mapping[str, int], cleaned: dict[str, int], malformed: dict[str, str],
    pieces: int, unknown: int, discarded: int,
) -> Manifest:  # fmt: skip
    """Return what was done, in the form that training checks."""
    return Manifest(
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
            SourceInfo(path=os.path.basename(source.name), bytes=source.size, documents=of_source.get(str(number), 0))
            for number, source in enumerate(corpus.sources)
        ],
        splits=infos,
        cleaning=CleaningInfo(
            recipe=job.cleaning.recipe,
            steps=list(job.cleaning.steps),
            splitter=job.cleaning.splitter,
            min_characters=job.cleaning.min_characters,
            near_similarity=job.cleaning.near_similarity,
            changed_or_dropped=cleaned,
            malformed_files=malformed,
        ),
    )


def write_metadata(manifest: Manifest, vocabulary: Vocabulary, folder: Path) -> None:
    """Write vocab.txt, features.json and dataset_info.json, with which tfds opens the folder, and manifest.json."""
    prefix = "tensorflow_datasets.core.features"
    shape = {"dimensions": [str(manifest.max_seq_length)]}
    tensor = {
        "pythonClassName": f"{prefix}.tensor_feature.Tensor",
        "tensor": {"shape": shape, "dtype": "int64", "encoding": "none"},
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
    named = {"features.json": features, "dataset_info.json": info}
    texts: dict[str, str | bytes] = {name: json.dumps(values, indent=1) + "\n" for name, values in named.items()}
    write_all(folder, {"vocab.txt": read_bytes(vocabulary.path), **texts})
    manifest.write(folder)
