"""Shards on gs:// -> a local folder, before training: each process's machine keeps its own copy.

A later start downloads only what changed in the bucket.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from electra_flax import formats
from electra_flax.config.data import DataConfig
from electra_flax.errors import UserError
from electra_flax.files import recall, write_whole
from electra_flax.runtime.console import progress
from electra_flax.storage.bucket import SCHEME, RemoteFolder, is_remote

_AT_ONCE = 8  # downloads
_SPARE = 1 << 28  # bytes of the disk that are left alone


def stage(
    path: str,
    folder: str = DataConfig.staging_folder,
    *,
    without: str | None = None,
    alive: Callable[[str], None] = lambda what: None,
) -> Path:
    """Return a local folder with the shards of `path`: itself where it is local, else a copy below `folder`.

    The shards of the split `without` are not copied now. `alive` hears of every file that was finished. Raises
    UserError where the bucket cannot be read or holds nothing, or `folder` has no room.
    """
    if not is_remote(path):
        return Path(path)
    remote = RemoteFolder(path)
    files = remote.files()
    if not files:
        raise UserError(f"{path}: nothing there; electra-data shard, then gcloud storage cp -r, put shards there")
    if not folder:
        raise UserError(f'data.staging_folder="": name a folder with room for the shards of {path}')
    local = Path(folder).expanduser() / remote.url.removeprefix(SCHEME)
    try:
        local.mkdir(parents=True, exist_ok=True)
        with _only_here(local):
            _update(remote, files, local, without, alive)
    except OSError as error:
        raise UserError(
            f"data.staging_folder={folder}: shards of {path} cannot be kept there ({error.strerror}): name another "
            "folder"
        ) from None
    return local


def _update(
    remote: RemoteFolder, files: dict[str, Any], local: Path, without: str | None, alive: Callable[[str], None]
) -> None:
    # What was copied is known by the object's generation, which changes with its content, and by its size here.
    memory = local / "staged.json"
    known = recall(memory, dict[str, list[int]]) or {}
    for name in known.keys() - files.keys():
        (local / name).unlink(missing_ok=True)
    wanted = {name: [int(blob.generation), int(blob.size)] for name, blob in files.items()}
    done = {
        name: stamp for name, stamp in wanted.items() if known.get(name) == stamp and _is_whole(local / name, stamp)
    }
    missing = [name for name in wanted.keys() - done.keys() if not (without and f"-{without}.tfrecord-" in name)]
    size = sum(wanted[name][1] for name in missing)
    free = max(shutil.disk_usage(local).free - _SPARE, 0)
    if size > free:
        raise UserError(
            f"{remote.url}: {formats.size(size)} to copy, but {local} has room for {formats.size(free)}: take a larger "
            "disk, or name a folder on another one (data.staging_folder)"
        )

    def fetch(name: str) -> str:
        (local / name).unlink(missing_ok=True)
        remote.download(files[name], local / name)
        return name

    bar = progress(size, f"copying {remote.url}", "B", enabled=size >= 10_000_000)
    with bar, ThreadPoolExecutor(_AT_ONCE) as pool:
        for name in pool.map(fetch, sorted(missing)):
            done[name] = wanted[name]
            write_whole(memory, json.dumps(done, indent=1) + "\n")  # what is here need not be fetched again
            bar.update(wanted[name][1])
            alive(f"copying {remote.url}")
    write_whole(memory, json.dumps(done, indent=1) + "\n")


def _is_whole(path: Path, stamp: list[int]) -> bool:
    return path.exists() and path.stat().st_size == stamp[1]


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Let one process of the machine make the copy that all share, and the others wait."""
    with (folder / "staging.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
