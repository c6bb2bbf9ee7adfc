"""Shards on gs:// -> a local folder, before training: each process's machine keeps its own copy.

A later start downloads only what changed in the bucket. Where the disk is too small, shards are streamed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from electra_flax.errors import UserError
from electra_flax.files import recall, write_whole
from electra_flax.runtime.console import progress
from electra_flax.storage.bucket import SCHEME, RemoteFolder, is_remote
from electra_flax.storage.streaming import pointer_path

log = logging.getLogger("electra_flax")

_AT_ONCE = 8  # downloads
_SPARE = 1 << 28  # bytes of the disk that are left alone


def stage(path: str, folder: str, alive: Callable[[str], None] = lambda what: None) -> Path:
    """A local folder with the shards of `path`: itself where it is local, else a copy below `folder` ("": streams).

    `alive` hears of every file that was finished. Raises UserError where the bucket cannot be read, or holds nothing.
    """
    if not is_remote(path):
        return Path(path)
    remote = RemoteFolder(path)
    files = remote.files()
    if not files:
        raise UserError(f"{path}: nothing there; electra-data shard, then gcloud storage cp -r, put shards there")
    home = Path(folder or "~/.cache/electra-flax/streamed").expanduser()
    local = home / remote.url.removeprefix(SCHEME)
    try:
        local.mkdir(parents=True, exist_ok=True)
        with _only_here(local):
            _update(remote, files, local, streams=not folder, alive=alive)
    except OSError as error:
        raise UserError(
            f"data.staging_folder={folder}: shards of {path} cannot be kept there ({error.strerror}): name another "
            'folder, or "" to stream them'
        ) from None
    return local


def _update(
    remote: RemoteFolder, files: dict[str, Any], local: Path, streams: bool, alive: Callable[[str], None]
) -> None:
    memory = local / "staged.json"
    known = recall(memory, dict[str, list[int]]) or {}
    for name in known.keys() - files.keys():
        _remove(local / name)
    wanted = {name: [int(blob.generation), int(blob.size)] for name, blob in files.items()}
    missing = [name for name, stamp in wanted.items() if known.get(name) != stamp or not _is_whole(local / name, stamp)]
    shards = [name for name in missing if ".tfrecord" in name and not name.endswith(".index")]
    size = sum(wanted[name][1] for name in missing)
    free = shutil.disk_usage(local).free - _SPARE
    if not streams and size > free:
        log.warning(
            "%s: %s MB to copy, but %s has room for %s MB: the shards are read from the bucket while training, which "
            "is slower; data.staging_folder names another folder",
            remote.url, f"{size / 1e6:,.0f}", local, f"{max(free, 0) / 1e6:,.0f}",
        )  # fmt: skip
        streams = True
    if streams:
        for name in shards:
            _point_to(f"{remote.url}/{name}", wanted[name][1], local / name)
        missing = [name for name in missing if name not in shards]
        size = sum(wanted[name][1] for name in missing)
    done = {name: stamp for name, stamp in wanted.items() if name not in missing and known.get(name) == stamp}

    def fetch(name: str) -> str:
        _remove(local / name)
        remote.download(files[name], local / name)
        return name

    bar = progress(size, f"copying {remote.url}", "B", scaled=True, enabled=size >= 10_000_000)
    with bar, ThreadPoolExecutor(_AT_ONCE) as pool:
        for name in pool.map(fetch, missing):
            done[name] = wanted[name]
            write_whole(memory, json.dumps(done, indent=1) + "\n")  # what is here need not be fetched again
            bar.update(wanted[name][1])
            alive(f"copying {remote.url}")
    write_whole(memory, json.dumps(done, indent=1) + "\n")


def _is_whole(path: Path, stamp: list[int]) -> bool:
    return path.exists() and path.stat().st_size == stamp[1] and not pointer_path(path).exists()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    pointer_path(path).unlink(missing_ok=True)


def _point_to(url: str, size: int, path: Path) -> None:
    pointer_path(path).write_text(url)
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Processes of one machine share the copy: one makes it, the others wait."""
    with (folder / "staging.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
