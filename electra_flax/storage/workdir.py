"""A workdir is the identity of a run: config.yaml, run.json, tokenizer/, checkpoints/, metrics, DONE, lock.

On gs:// the checkpoints are written there directly. All else is small: it is worked on in a local copy, which is
brought to the bucket before each checkpoint and at the end, so that the numbers are never behind the weights.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from etils import epath

from electra_flax.config.loading import load_config
from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.runtime import status
from electra_flax.storage.bucket import RemoteFolder, is_remote
from electra_flax.storage.lease import Lease

# What stays on the machine that wrote it.
_LOCAL = ("lock", "verified_", "wandb/")
_BY_ITSELF = ("checkpoints/", "damaged/")

_FOLDERS = ("checkpoints", "damaged", "tensorboard", "tokenizer")
_FILES = ("config.yaml", "run.json", "metrics.jsonl", "events.jsonl", "lock", "wandb_run", "DONE")


@dataclass(frozen=True)
class Run:
    """run.json."""

    data_paths: list[str]
    """Of each phase."""
    data: str
    """`data_identity` of each phase, joined."""
    packed_rows: list[int] = field(default_factory=list)
    """A step's, of each phase; none where each example has a row of its own."""
    frozen: str = ""
    """Sha256 of a generator that does not learn."""
    samples: str = ""
    """What tells apart what it sampled ahead (data.corrupted)."""


_WRITTEN_ANEW = "remove it, and electra-flax pretrain with the run's own --config and --data writes it anew"
_SHOWN = 200  # letters of what holds the lock


class Workdir:
    """Where a run lives: `name` as it was given, `folder` with its small files, `checkpoints`."""

    def __init__(self, name: str | Path) -> None:
        """Open a workdir. Raises UserError for a bucket that cannot be reached."""
        self.name = str(name)
        self._remote = RemoteFolder(self.name) if is_remote(name) else None
        if self._remote is None:
            self.folder = Path(name)
            self.checkpoints = epath.Path(os.path.realpath(self.folder)) / "checkpoints"
        else:
            self._copy = tempfile.TemporaryDirectory(prefix="electra-flax-")
            self.folder = Path(self._copy.name)
            self.checkpoints = epath.Path(self._remote.url) / "checkpoints"
        self._pushed: dict[str, tuple[int, int]] = {}

    def __str__(self) -> str:
        return self.name

    def pull(self, without: tuple[str, ...] = ()) -> Workdir:
        """Bring the small files here, but those whose names begin with one of `without`. Raises UserError."""
        if self._remote is not None:
            for name, blob in self._remote.files().items():
                if not name.startswith((*_LOCAL, *_BY_ITSELF, *without)):
                    self._remote.download(blob, self.folder / name)
            self._pushed = self._stamps()
        return self

    def push(self) -> None:
        """Bring what changed to the bucket. Raises UserError."""
        if self._remote is not None:
            for name, stamp in self._stamps().items():
                if self._pushed.get(name) != stamp and not name.startswith(_LOCAL):
                    self._remote.upload(self.folder / name, name)
                    self._pushed[name] = stamp

    def _stamps(self) -> dict[str, tuple[int, int]]:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    def lock(self) -> AbstractContextManager[Any]:
        """Keep other processes out inside its `with`; a process that dies lets go of it.

        Raises UserError, on entering too, where another process trains there, or it cannot be written.
        """
        if self._remote is not None:
            return Lease(self._remote)
        return _lock(self.folder)

    def read_config(self) -> Config:
        """Return the resolved configuration of the run. Raises UserError where there is none."""
        path = self.folder / "config.yaml"
        if not path.exists():
            what = "not the workdir of a run (no config.yaml there)" if self.folder.exists() else "no such folder"
            raise UserError(f"{self}: {what}: give the --workdir of electra-flax pretrain")
        return load_config(path)

    def read_data_path(self, phase: int) -> str:
        """Return where the run found the shards of a phase. Raises UserError where run.json cannot be read."""
        paths = read_run(self.folder).data_paths
        if phase >= len(paths):
            raise UserError(
                f"{self.folder / 'run.json'}: data_paths: has {len(paths)}, none of phase {phase + 1}: {_WRITTEN_ANEW}"
            )
        return paths[phase]


def is_workdir(folder: Path) -> bool:
    """Return whether a local folder is that of a run."""
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def refuse_inside(out: Path) -> None:
    """Raise UserError where `out` is the workdir of a run, or lies among its checkpoints."""
    place = Path(os.path.realpath(out))
    for folder in (place, *place.parents):
        if is_workdir(folder) and (folder == place or place.relative_to(folder).parts[0] + "/" in _BY_ITSELF):
            raise UserError(f"--out {out}: inside the run of --workdir {folder}: choose another folder")


def check_kinds(workdir: Path) -> None:
    """Raise UserError where a folder lies in a file's place or the reverse: before training, not in the middle."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: not a folder: choose another")
    for name in _FOLDERS:
        path = workdir / name
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: expected a folder: move it away, or use another --workdir")
    for name in _FILES:
        path = workdir / name
        if path.exists() and not path.is_file():  # appending to a FIFO would never end
            raise UserError(f"{path}: expected a regular file: move it away, or use another --workdir")


@contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """Lock a local workdir; one that nothing was written to, as by a run that is refused, is left as it was found."""
    made = [path for path in (workdir, *workdir.absolute().parents) if not path.exists()]
    file = _locked(workdir)
    try:
        yield
    finally:
        with suppress(OSError):
            if [path.name for path in workdir.iterdir()] == ["lock"]:
                (workdir / "lock").unlink()
                for path in made:
                    path.rmdir()
        file.close()


def _locked(workdir: Path) -> IO[str]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_kinds(workdir)
        file = (workdir / "lock").open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise not_writable(workdir, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(_SHOWN).strip()
        file.close()
        raise UserError(
            f"{workdir}: another process is at work there ({holder}): wait for it, end it, or use another folder"
        ) from None
    if not (workdir / "lock").exists() or not os.path.samestat(os.fstat(file.fileno()), (workdir / "lock").stat()):
        file.close()
        return _locked(workdir)  # its holder has just ended, and removed it
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
            status.tell(state=event, step=step)
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(
                        json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **details}) + "\n"
                    )
            except OSError:
                return  # a full disk; the loop says so when it cannot save


def not_writable(workdir: Path, error: OSError) -> UserError:
    return UserError(f"{workdir}: cannot be written ({error.strerror}): choose a folder that you may write to")


def read_run(workdir: Path) -> Run:
    return read_json(workdir / "run.json", Run, _WRITTEN_ANEW)
