"""Small files: read with a limit and checked against a schema; written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from electra_flax.errors import UserError
from electra_flax.text import encoding_advice, marked_encoding

T = TypeVar("T")
_MOST_BYTES = 1 << 30  # of a small file; a manifest of 100,000 shards has 10 MB
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_YAML_BYTES, _MOST_YAML_DEPTH = 1 << 20, 20


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return a regular file's content.

    Raises UserError with the path for anything that cannot be read, absent ones too.
    """
    try:
        size = check_file(path)
        if size > most:
            raise UserError(f"{path}: {size:,} bytes, expected a small file of at most {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a valid file name ({error})") from None


def check_file(path: Path) -> int:
    """Return the size of a file that can be read to its end.

    Raises UserError for another thing, and for the few lines that git leaves in a file's place where Git LFS did not
    bring the file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a FIFO or a device would never end
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise UserError(f"{path}: {what}, expected a file")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    return status.st_size


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return a small file's text. Raises UserError as `read_bytes` does, and for another encoding."""
    return decode(read_bytes(path), path, encoding)


def decode(data: bytes, where: object, encoding: str = "utf-8") -> str:
    """Return a whole file's text; a byte order mark wins over `encoding` and is no content.

    Raises UserError naming `where`, the line and the likely encoding.
    """
    marked, skip = marked_encoding(data)
    encoding = marked or encoding
    try:
        return data[skip:].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        rest = error.object[error.start :].split(b"\n", 1)[0]
        raise UserError(
            f"{where} line {line}: byte 0x{error.object[error.start]:02x} is not {encoding.upper()}; "
            f"{encoding_advice(rest, encoding)}"
        ) from None


def read_json(path: Path, kind: type[T], fix: str, *, is_ours: bool = True) -> T:
    """Return a JSON file as a `kind`: a dataclass, or a type such as dict[str, int].

    Fields unknown to it are refused, or passed over in a file that others define.

    Raises UserError naming the file, the field, what was found and what was expected, and then `fix`.
    """
    return parse_json(read_bytes(path), kind, path, fix, is_ours=is_ours)


def parse_json(data: bytes | str, kind: type[T], where: object, fix: str, *, is_ours: bool = True) -> T:
    """Return what `read_json` does, of what was read already; `where` is named in errors."""
    if isinstance(data, bytes):
        data = decode(data, where)
    try:
        return _adapter(kind).validate_json(data, strict=True, extra="forbid" if is_ours else "ignore")
    except ValidationError as error:
        raise UserError(f"{where}: {_problem(error)}: {fix}") from None


def recall(path: Path, kind: type[T]) -> T | None:
    """Return what was kept only to save work: None where it is absent, damaged or of another release.

    It is made again then.
    """
    try:
        return read_json(path, kind, "it is made again")
    except UserError:
        return None


@contextmanager
def remembered(paths: Sequence[Path], memory: Path | None) -> Iterator[set[Path]]:
    """Yield those of the files that are to be checked: not the ones that were, at this size and time.

    All count as checked once the `with` ends well. `memory` is the JSON file that remembers; None: nothing is known,
    and nothing remembered.
    """
    known = (recall(memory, dict[str, list[int]]) if memory else None) or {}
    stamps = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    yield {path for path in paths if known.get(str(path)) != stamps[str(path)]}
    if memory:
        write_whole(memory, json.dumps(stamps, indent=1) + "\n")


def parse_lines(data: bytes, kind: type[T]) -> tuple[list[T], int]:
    """Return JSON lines as `kind`s, and how many could not be read: cut off when a process was killed, or damaged."""
    found: list[T] = []
    adapter, unreadable = _adapter(kind), 0
    for line in data.split(b"\n"):
        if line.strip():
            try:
                found.append(adapter.validate_json(line, strict=True))
            except ValidationError:
                unreadable += 1
    return found, unreadable


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    adapter: TypeAdapter[T] = _adapter_of(cast(Hashable, kind))
    return adapter


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(error: ValidationError) -> str:
    """Return the first problem: field, what was found, what was expected."""
    problem = error.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Input should be ")
    if problem["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
    field = ".".join(map(str, problem["loc"])) or "the whole"
    if problem["type"] == "value_error":  # of a dataclass's own check, which names its field
        return str(problem["ctx"]["error"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field}: unknown field"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{field}: missing"
    found = repr(problem["input"])
    return f"{field}={found[:60]}{'...' if len(found) > 60 else ''}: expected {message}"


def read_yaml(path: Path) -> Any:
    """Return a small YAML file. Raises UserError as `read_bytes` does, and for what is not plain data within limits."""
    return parse_yaml(decode(read_bytes(path, _MOST_YAML_BYTES), path), path)


def parse_yaml(text: str, where: object) -> Any:
    """Return plain data; aliases are refused: a few lines of them can stand for gigabytes, or for themselves."""
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _MOST_YAML_DEPTH:
                raise UserError(f"{where}: nested more than {_MOST_YAML_DEPTH} levels deep")
            if isinstance(event, AliasEvent):
                raise UserError(f"{where}: *{event.anchor}: aliases are not supported: write the value out")
        return yaml.load(text, _Loader)
    # Those of Python come from tags, as !!bool maybe.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not YAML ({' '.join(str(error).split())[:200]})") from None


class _Loader(yaml.SafeLoader):
    """Plain data; keys are text as it is written: 0, no and 07 are names of labels, no numbers or truth values."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key.start_mark)
            if key.value in found:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            found[key.value] = self.construct_object(value, deep=deep)
        return found


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace the file in one step; text in UTF-8. Raises UserError where it cannot be written: it stays as it was."""
    with replaced(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def write_all(folder: Path, contents: dict[str, str | bytes]) -> None:
    """Write {name: content} into a folder, which is made: all files or, where one cannot be written, none.

    Raises UserError as `write_whole` does.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}): choose another folder") from None
    try:
        with ExitStack() as all_of_them:
            for name, content in contents.items():
                unfinished = all_of_them.enter_context(replaced(folder / name))
                unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except UserError:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def check_place(path: Path) -> None:
    """Raise UserError where something other than a file lies there: a device or FIFO would be replaced by one."""
    try:
        if path.name in ("", ".."):
            raise UserError(f"{path}: a folder; expected a file")
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise UserError(f"{path}: {what}, expected a file or a new name: name another")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise UserError(f"{path}: cannot be written ({folder} is no folder): name another")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): name another") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the file's place once the `with` ends well.

    Raises UserError where it cannot be written: the file stays as it was.
    """
    check_place(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free some space, or choose another folder"
        ) from None
