"""A workdir is the identity of a run: config.yaml, run.json, tokenizer/, checkpoints/, metrics, DONE, lock."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

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
    "data.max_seq_length",
    "data.shuffle_seed",
    "data.vocab_file",
    "training.batch_size",
    "training.seed",
)


def prepare(workdir: Path, config: Config, data: DataFolder, vocabulary: Vocabulary) -> list[str]:
    """Creates the workdir, or checks that it belongs to this run; returns the harmless differences, a line each.

    Raises UserError where it cannot be written, or belongs to a run with another model or other data.
    """
    identity = data_identity(data, vocabulary)
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
        raise _not_writable(workdir, error) from None
    save_tokenizer(vocabulary, _casing(data, vocabulary), workdir / "tokenizer", config.model.max_position_embeddings)
    return notes


def lock(workdir: Path) -> IO[str]:
    """Keeps other processes out while the returned file is open; a process that dies lets go of it.

    Raises UserError where another process trains there, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise _not_writable(workdir, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(
            f"--workdir {workdir}: another process trains there ({holder}): wait for it, end it, or use another folder"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


class Events:
    """What happened to the run besides learning, a JSON object a line in events.jsonl; process 0 alone writes."""

    def __init__(self, workdir: Path, enabled: bool) -> None:
        self._path = workdir / "events.jsonl"
        self._enabled = enabled

    def add(self, event: str, step: int, **details: Any) -> None:
        if self._enabled:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(
                        json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **details}) + "\n"
                    )
            except OSError:
                return  # a full disk; the loop says so when it cannot save


def _not_writable(workdir: Path, error: OSError) -> UserError:
    return UserError(
        f"--workdir {workdir}: cannot be written ({error.strerror}): choose a folder that you may write to"
    )


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


def data_identity(data: DataFolder, vocabulary: Vocabulary) -> str:
    """Tells two sets of shards apart, wherever they lie."""
    files = data.splits["train"]
    size = sum(file.stat().st_size for file in files)
    return f"{len(files)} training shards of {size} bytes, vocabulary {vocabulary.sha256[:12]}"


def _casing(data: DataFolder, vocabulary: Vocabulary) -> Casing:
    if data.manifest is not None:
        return Casing(data.manifest.do_lower_case, data.manifest.strip_accents)
    return Casing.read(vocabulary.path.parent)
