"""Damaged copies of what the product reads, and commands run over them in this process, each with a time limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.cli import main as data_main
from electra_flax.commands.cli import main as flax_main
from electra_flax.errors import UNFORESEEN

SECONDS = 60.0  # of a command, on a busy machine
FIELDS: tuple[Any, ...] = (None, -1, 10**30, 1.5, "12", [], {}, [1, "a"], True, "x\n\x1b[31m")


class Hang(BaseException):
    """A command did not end; no `except Exception` swallows it."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again: threads may be waited for on the way out
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(arguments: Sequence[object], seconds: float = SECONDS) -> int:
    """The exit code of `electra-flax ...` or `electra-data ...`; whatever is no meant end fails."""
    program, *given = map(str, arguments)
    main = {"electra-flax": flax_main, "electra-data": data_main}[program]
    with time_limit(seconds):
        try:
            code = main(given)
        except SystemExit as error:
            code = error.code
    assert code != UNFORESEEN, f"{program} {' '.join(given)} ended as nobody foresaw"
    return code


def whole_file(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def in_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else where the file was."""

    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": whole_file(b""),
    "list": whole_file(b"[]"),
    "null": whole_file(b"null"),
    "number": whole_file(b"5"),
    "object": whole_file(b"{}"),
    "not UTF-8": whole_file(b'{"a": "\xb0\xa1\xff"}'),
    "nested": whole_file(b"[" * 100_000),
    "digits": whole_file(b'{"a": ' + b"9" * 5000 + b"}"),
    "folder": in_place(Path.mkdir),
    "FIFO": in_place(os.mkfifo),
    "loop": in_place(lambda path: path.symlink_to(path.name)),
    "absent": in_place(lambda path: None),
}


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of each value in plain data; of lists the first entry."""
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))[:1]
    else:
        return [path]
    return [path] * bool(path) + [place for key, child in children for place in fields_of(child, (*path, key))]


def with_field(text: str, place: Sequence[Any], value: Any) -> str:
    """JSON, or the first of JSON lines, with one value changed; `...` takes it out."""
    first, newline, rest = text.partition("\n") if text.count("\n{") else (text, "", "")
    whole = json.loads(first)
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return json.dumps(whole) + newline + rest


def copied(source: Path, target: Path) -> None:
    """`target`, which may be the current folder, becomes a copy of `source`."""
    for path in target.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)
