"""Small files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path

from electra_flax.config import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces the file in one step; text in UTF-8. Raises UserError where it cannot be written: it stays as it was."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room, or name another folder") from None
