"""Corpus files -> documents, in constant memory.

A document is a list of lines. Plain text (.txt, .gz): a blank line or the end of the file closes a document.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from electra_flax.config import UserError


class Document(NamedTuple):
    """Lines of text without their line ends, none blank."""

    source: int
    """Which of the corpus files it came from."""
    lines: list[str]


def find_sources(patterns: Sequence[str]) -> list[Path]:
    """Files, folders (all .txt and .gz below) and globs -> files, sorted. Raises UserError where there are none."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = [file for file in path.rglob("*") if file.suffix in (".txt", ".gz") and file.is_file()]
        elif any(character in pattern for character in "*?["):
            root = Path(path.anchor) if path.is_absolute() else Path()
            files = [file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file()]
        else:
            raise UserError(f"--corpus {pattern}: no such file or folder")
        if not files:
            raise UserError(f"--corpus {pattern}: no .txt or .gz files there")
        found.update(files)
    return sorted(found)


def read_documents(sources: Sequence[Path]) -> Iterator[Document]:
    """All documents, file by file. Raises UserError for what is not UTF-8 text, naming file and line."""
    for number, path in enumerate(sources):
        lines: list[str] = []
        for line in _read_lines(path):
            if line:
                lines.append(line)
            elif lines:
                yield Document(number, lines)
                lines = []
        if lines:
            yield Document(number, lines)


def _read_lines(path: Path) -> Iterator[str]:
    """Stripped lines; as in the original only LF ends a line and every CR goes."""
    is_gzip = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if b"\0" in raw:
                    raise UserError(
                        f"{path} line {number}: a NUL byte: not a text file; expected UTF-8 text (.txt or .gz)"
                    )
                try:
                    yield raw.decode().replace("\r", "").strip()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} line {number}: byte 0x{raw[error.start]:02x} at column {error.start + 1} is not "
                        "UTF-8; convert the file, for example: iconv -f CP949 -t UTF-8"
                    ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
