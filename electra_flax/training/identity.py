"""Which run a workdir belongs to: what may change between two starts and what makes another run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from electra_flax.config.loading import config_differences, config_to_yaml
from electra_flax.config.schema import Config
from electra_flax.data.shards import DataFolder
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import write_whole
from electra_flax.storage.bucket import is_remote
from electra_flax.storage.workdir import Run, Workdir, check_kinds, not_writable, read_run

# A change of these makes another run; anything else may change between two starts and is only reported.
_IDENTITY = (
    "model.",
    "generator.",
    "objective.",
    "masking.",
    "data.max_seq_length",
    "data.shuffle_seed",
    "data.vocab_file",
    "data.packing",
    "packing.",
    "training.batch_size",
    "training.seed",
    "long_phase.",
    "optimizer.algorithm",
    "optimizer.decoupled",
)


def prepare(
    work: Workdir,
    config: Config,
    paths: Sequence[str],
    identity: str,
    packed_rows: Sequence[int] = (),
    frozen: str = "",
    samples: str = "",
) -> list[str]:
    """Create the workdir, or check that it belongs to this run; return the harmless differences, a line each.

    `identity` tells the shards apart, `paths` says where they are, `packed_rows` are a step's of each phase, `frozen`
    is the sha256 of a generator that does not learn, `samples` tells apart what it sampled ahead. Raises UserError
    where the workdir cannot be written, or belongs to a run with another model or other data.
    """
    notes = check_identity(work, config, identity)
    check_frozen(work, frozen)
    samples = _check_samples(work, config, samples)
    absolute = [path if is_remote(path) else os.path.realpath(path) for path in paths]
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(work.folder, error) from None
    write_whole(
        work.folder / "run.json",
        json.dumps(asdict(Run(absolute, identity, list(packed_rows), frozen, samples)), indent=1) + "\n",
    )
    write_whole(work.folder / "config.yaml", config_to_yaml(config))  # the last one: it makes the folder a workdir
    return notes


def check_identity(work: Workdir, config: Config, identity: str | None) -> list[str]:
    """Return the harmless differences from the run that is there, a line each.

    Raises UserError where it is another run.

    An `identity` of None is not compared.
    """
    check_kinds(work.folder)
    if not (work.folder / "config.yaml").exists():
        if any(work.folder.glob("electra-*.tfrecord-*")):
            raise UserError(f"--workdir {work}: a folder of shards: choose another")
        for name in ("checkpoints", "metrics.jsonl", "events.jsonl", "DONE"):
            if (work.folder / name).exists():  # config.yaml is there before any of them
                raise UserError(f"--workdir {work}: holds {name}, but no config.yaml of a run: choose another")
        return []
    notes: list[str] = []
    differences = config_differences(work.read_config(), config)
    changed = {name: change for name, change in differences.items() if name.startswith(_IDENTITY)}
    if config.generator.frozen is not None and not changed.get("generator.frozen", "").startswith("None"):
        changed.pop("generator.frozen", None)  # where it lies; what it is says its sha256
    if identity is not None:
        if not (work.folder / "run.json").exists():
            notes.append(f"run.json was missing: the shards are assumed to be the same ({identity})")
        elif (known := read_run(work.folder).data) != identity:
            changed["the shards"] = f"{known} -> {identity}"
    if changed:
        shown = "; ".join(f"{name}: {change}" for name, change in changed.items())
        raise UserError(f"{work} belongs to another run ({shown}): use another --workdir, or undo the change")
    return [*notes, *(f"{name}: {change}" for name, change in differences.items())]


def check_frozen(work: Workdir, frozen: str) -> None:
    """Raise UserError where a run that is there has another generator that does not learn; `frozen` is its sha256."""
    known = read_run(work.folder).frozen if (work.folder / "run.json").exists() else frozen
    if known != frozen:
        raise UserError(
            f"{work}: its generator.frozen had the sha256 {known[:12] or 'of none'}, the one there now has "
            f"{frozen[:12] or 'none'}: put the first one back, or use another --workdir"
        )


def _check_samples(work: Workdir, config: Config, samples: str) -> str:
    """Return which samples are the run's. Raises UserError where it has learned from others of the same generator."""
    known = read_run(work.folder).samples if (work.folder / "run.json").exists() else ""
    if samples and known and known != samples:
        raise UserError(
            f"{work}: it learned from other samples (digest {known[:12]}) than data.corrupted={config.data.corrupted} "
            f"has (digest {samples[:12]}): put the first folder back, or use another --workdir"
        )
    return samples or known


def packed_rows(work: Workdir) -> list[int]:
    """Return the packed rows a step of each phase of the run that is there; none where there is no run, or nothing."""
    return read_run(work.folder).packed_rows if (work.folder / "run.json").exists() else []


def data_identity(data: DataFolder, vocabulary: Vocabulary) -> str:
    """Return what tells two sets of shards apart, wherever they lie."""
    files = data.splits["train"]
    size = sum(file.stat().st_size for file in files)
    return f"{len(files)} training shards of {size} bytes, vocabulary {vocabulary.sha256[:12]}"


def casing(data: DataFolder, vocabulary: Vocabulary) -> Casing:
    """Return what the shards' text went through; for shards of the original code, what stands beside the vocabulary."""
    if data.manifest is not None:
        return Casing(data.manifest.do_lower_case, data.manifest.strip_accents)
    return Casing.read(vocabulary.path.parent)
