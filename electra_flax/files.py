"""Small files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from electra_flax.config import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces the file in one step; text in UTF-8. Raises UserError where it cannot be written: it stays as it was."""
    with replaced(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the file's place once the `with` ends well.

    Raises UserError where it cannot be written: the file stays as it was.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room, or name another folder") from None
