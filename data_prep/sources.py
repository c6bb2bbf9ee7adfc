"""Corpus files, local or on gs://, as decompressed byte streams that know how far they have read."""

import bz2
import glob
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.errors import UserError, escaped
from electra_flax.formats import counted

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

SAMPLE = Path(__file__).parent / "sample"
"""A little Korean text that ships with the package, for --corpus by its name."""
SUFFIXES = (
    ".txt", ".text", ".json", ".jsonl", ".ndjson", ".xml", ".parquet", ".gz", ".bz2", ".xz", ".zst"
)  # fmt: skip
_UNPACKERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": zstd.open,
}
_ARCHIVES = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a": "rar"}
_BUFFER_BYTES = 1 << 20
_SHOWN = 5  # names in a message


class Source(NamedTuple):
    """One corpus file; `path` may begin with gs://, or with tfds: and then names a data set (size 0)."""

    path: str
    size: int
    modified: str
    """Time of the last change, or the object's version: with the size, what tells a restart that nothing changed."""

    @property
    def is_packed(self) -> bool:
        return is_packed(self.path) or self.path.lower().endswith(".parquet")

    @property
    def name(self) -> str:
        """Return the path as it can be printed and written down: names need not be UTF-8."""
        return escaped(self.path)


def is_packed(path: str) -> bool:
    """Return whether the name says that the file is compressed as a whole."""
    return path.lower().endswith((".gz", ".bz2", ".xz", ".zst"))


def find_sources(patterns: Sequence[str], warn: Callable[[str], None] = lambda message: None) -> list[Source]:
    """Return the files, sorted by path, that are meant by files, folders and globs.

    Of a folder, every file below with one of SUFFIXES, WikiExtractor's wiki_00 too. Where no file or folder is named
    `sample`, it is the text that ships with the package.

    A file counts once, by whatever paths it is named; `warn` hears of those of a folder that are left out.
    Raises UserError where one of the patterns names nothing.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        if pattern.startswith("tfds:"):
            found[pattern] = Source(pattern, 0, "")
        elif pattern.startswith("gs://"):
            found.update((source.path, source) for source in _find_remote(pattern, warn))
        else:
            for path in _find(pattern, warn):
                status = path.stat()
                found.setdefault(os.path.realpath(path), Source(str(path), status.st_size, str(status.st_mtime_ns)))
    return sorted(found.values())


def _find(pattern: str, warn: Callable[[str], None]) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        below = _files_below(path)
        files = [file for file in below if _is_corpus_file(file.name)]
        _tell_left(pattern, [str(file.relative_to(path)) for file in below if not _is_corpus_file(file.name)], warn)
    elif glob.has_magic(pattern):
        files = [Path(file) for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]
    elif pattern == SAMPLE.name and not path.exists():
        files = list(SAMPLE.glob("*.txt"))
    else:
        what = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise UserError(f"--corpus {pattern}: {what}")
    if not files:
        raise UserError(f"--corpus {pattern}: no corpus files there; expected names that end in {', '.join(SUFFIXES)}")
    return files


def _tell_left(pattern: str, left: Sequence[str], warn: Callable[[str], None]) -> None:
    if left:
        shown = ", ".join(map(escaped, sorted(left)[:_SHOWN]))
        warn(
            f"--corpus {pattern}: skipped {counted(len(left), 'files')} whose names do not look like text: {shown}"
            f"{', ...' if len(left) > _SHOWN else ''}; to read them, give their names or a glob"
        )


def _files_below(folder: Path) -> list[Path]:
    """Return all regular files, in linked folders too, each folder once; hidden ones are nobody's text."""
    files, seen = [], set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [file for name in names if not name.startswith(".") and (file := Path(where, name)).is_file()]
    return files


def _is_corpus_file(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or name.startswith("wiki_")


def _find_remote(pattern: str, warn: Callable[[str], None]) -> list[Source]:
    storage = google_storage()
    try:
        if glob.has_magic(pattern):
            infos = list(storage.glob(pattern, detail=True).values())
        else:
            below = list(storage.find(pattern, detail=True).values())
            infos = [info for info in below if _is_corpus_file(os.path.basename(info["name"])) or len(below) == 1]
            kept = {info["name"] for info in infos}
            _tell_left(pattern, [info["name"] for info in below if info["name"] not in kept], warn)
    except Exception as error:  # whatever the client raises: network, permission, no such bucket
        raise UserError(
            f"--corpus {pattern}: cannot be listed ({error}): check the bucket's name and your permissions"
        ) from None
    if not infos:
        raise UserError(f"--corpus {pattern}: no corpus files there; expected names that end in {', '.join(SUFFIXES)}")
    return [Source("gs://" + info["name"], info["size"], str(info.get("generation", ""))) for info in infos]


def google_storage() -> Any:
    """Return the file system behind gs://. Raises UserError where gcsfs is not installed."""
    try:
        import gcsfs
    except ModuleNotFoundError:
        raise UserError("gs:// paths need gcsfs: pip install 'electra-flax[gcs]'") from None
    return gcsfs.GCSFileSystem()


class _Counted(io.RawIOBase):
    """Counts the bytes that are read of a file, as it lies on the disk."""

    def __init__(self, file: Any, count: Callable[[int], None]) -> None:
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)


def _check_head(source: Source, head: bytes) -> None:
    """Raise what `open_source` does for a file of several files, and for a packed one cut within its first bytes."""
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            raise UserError(f"{source.path}: a {kind} archive; expected a text file: unpack it and give its files")
    if head and is_packed(source.path) and any(magic.startswith(head) and magic != head for magic in _UNPACKERS):
        raise EOFError("cut off within its first bytes")


@contextmanager
def open_source(source: Source, count: Callable[[int], None] = lambda num_bytes: None) -> Iterator[Any]:
    """Yield the file's bytes, decompressed by what it begins with; `count` hears of every read of the packed file.

    Raises UserError, with the byte, for a file that cannot be read or ends too early.
    """
    raw: Any = None
    try:
        raw = google_storage().open(source.path, "rb") if source.path.startswith("gs://") else open(source.path, "rb")
        file: Any = io.BufferedReader(_Counted(raw, count), _BUFFER_BYTES)
        head = file.peek(8)
        _check_head(source, head)
        for magic, unpacker in _UNPACKERS.items():
            if head.startswith(magic):
                file = io.BufferedReader(unpacker(file, "rb"), _BUFFER_BYTES)
                break
        yield file
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        where = f" at byte {raw.tell():,} of {source.size:,}" if raw else ""
        what = "truncated: " if isinstance(error, EOFError) else ""
        raise UserError(f"{source.path}: cannot be read{where}: {what}{error}; copy the file again") from None
    finally:
        if raw:
            raw.close()
