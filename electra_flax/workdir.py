"""A workdir is the identity of a run: config.yaml, run.json, tokenizer/, checkpoints/, metrics, DONE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from electra_flax.config import Config, UserError
from electra_flax.config_io import config_differences, config_to_yaml, load_config
from electra_flax.records import DataFolder, Vocabulary
from electra_flax.tokenizer import Casing, save_tokenizer

# A change of these makes another run; anything else may change between two starts and is only reported.
_IDENTITY = (
    "model.",
    "generator.",
    "objective.",
    "masking.",
    "data.",
    "training.batch_size",
    "training.seed",
)


def prepare(workdir: Path, config: Config, data: DataFolder, vocabulary: Vocabulary) -> list[str]:
    """Creates the workdir, or checks that it belongs to this run; returns the harmless differences, a line each.

    Raises UserError where it cannot be written, or belongs to a run with another model or other data.
    """
    identity = _data_identity(data, vocabulary)
    notes: list[str] = []
    if (workdir / "config.yaml").exists():
        differences = config_differences(read_config(workdir), config)
        changed = {name: change for name, change in differences.items() if name.startswith(_IDENTITY)}
        if _read_run(workdir)["data"] != identity:
            changed["the shards"] = f"{_read_run(workdir)['data']} -> {identity}"
        if changed:
            shown = "; ".join(f"{name}: {change}" for name, change in changed.items())
            raise UserError(f"{workdir} belongs to another run ({shown}): use another --workdir, or undo the change")
        notes = [f"{name}: {change}" for name, change in differences.items()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        run = {"data_path": str(data.path.resolve()), "data": identity}
        (workdir / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir}: cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from None
    save_tokenizer(vocabulary, _casing(data, vocabulary), workdir / "tokenizer", config.model.max_position_embeddings)
    return notes


def read_config(workdir: Path) -> Config:
    """The resolved configuration of a run. Raises UserError where there is none."""
    path = workdir / "config.yaml"
    if not path.exists():
        raise UserError(f"--workdir {workdir}: not the workdir of a run (no config.yaml there)")
    return load_config(path)


def read_data_path(workdir: Path) -> Path:
    """Where the run found its shards."""
    return Path(_read_run(workdir)["data_path"])


def _read_run(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "run.json").read_text(encoding="utf-8"))


def _data_identity(data: DataFolder, vocabulary: Vocabulary) -> str:
    """Tells two sets of shards apart, wherever they lie."""
    files = data.splits["train"]
    size = sum(file.stat().st_size for file in files)
    return f"{len(files)} training shards of {size} bytes, vocabulary {vocabulary.sha256[:12]}"


def _casing(data: DataFolder, vocabulary: Vocabulary) -> Casing:
    if data.manifest is not None:
        return Casing(data.manifest.do_lower_case, data.manifest.strip_accents)
    return Casing.read(vocabulary.path.parent)
