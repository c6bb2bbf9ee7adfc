"""A command line made of dataclasses: a command is one, its fields are the flags, `run` is what it does.

    class Show(Devices):
        \"""Show what the discriminator detects.    in the list of commands; what follows, above the command's own help

        Lets the generator of an export replace words ...
        \"""

        model: Folder
        \"""help of --model; there is no default: it must be given\"""
        examples: Annotated[int, Range(1, 10_000), "N"] = 4
        \"""examples to show\"""

        def run(self) -> None: ...

A bool is a flag without a value, a Literal a choice, a tuple takes several values. An annotation holds, beside a Range,
the placeholder in the help (text), the choices (a tuple), what reads the text (a function), or a Flag. The fields of a
base class stand in a group of the help, whose title and text are the base's docstring.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)
from typing import get_type_hints as hints_of

from electra_flax import __version__
from electra_flax.config.ranges import Range
from electra_flax.errors import EXIT_CODES, escaped, short
from electra_flax.runtime.ending import print_whole

_EXAMPLE_WIDTH = 76

Number = TypeVar("Number", int, float)


def given_place(text: str) -> str:
    """Return `text`, which names a path or gs://...; refuse "", which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("empty; expected a path")
    return text


def given_path(text: str) -> Path:
    """Return `given_place` as a Path."""
    return Path(given_place(text))


Folder = Annotated[Path, given_path, "DIR"]
File = Annotated[Path, given_path, "FILE"]
ConfigFile = Annotated[Path, given_path, "YAML"]
ConfigName = Annotated[Path, given_path, "NAME|YAML"]
Place = Annotated[str, given_place, "DIR"]
"""Local or gs://."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Command:
    """Makes a frozen dataclass of each class below it."""

    example: ClassVar[str] = ""
    """A command line, or several."""
    epilog: ClassVar[str] = ""
    """The end of its help, where it is not the program's."""
    more_help: ClassVar[Callable[[], str] | None] = None
    """What follows the help, made when it is asked for."""
    interrupted: ClassVar[str] = ""
    """What Ctrl-C leaves."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def run(self) -> int | None:
        """Do it; return the exit code, where it is not 0."""
        raise NotImplementedError


class Overridden(Command):
    """Takes the flags that are none of its own: fields of a configuration, read with it."""

    overrides: tuple[str, ...] = ()

    @staticmethod
    def fields() -> type:
        """Return the dataclass whose fields they are."""
        from electra_flax.config.schema import Config

        return Config


class Flag(NamedTuple):
    """What the type of a field does not say: three words of argparse, and two of ours."""

    action: str | None = None
    nargs: str | None = None
    const: Any = None
    positional: bool = False
    one_of: bool = False
    """Exactly one of the fields that say so must be given."""


class Parser(argparse.ArgumentParser):
    """Of a command line; what is said of a mistake shows escapes and line breaks of what was given by their codes.

    A flag that is unknown is named with the nearest one, also where a mistyped one is said to be missing.
    """

    more_help: Callable[[], str] | None = None
    """What follows the flags, made where it is asked for."""
    commands: Mapping[str, Parser] = types.MappingProxyType({})
    _given: Sequence[str] = ()

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Help, **keywords})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as ever, but let `error` know what was given."""
        self._given = [str(each) for each in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        print_whole(self.format_help() + (f"\n{self.more_help()}" if self.more_help else ""))

    def error(self, message: str) -> NoReturn:
        if message.endswith("required") or message.startswith(("the following arguments", "unrecognized")):
            message = self.nearest_flag(self._given, cutoff=0.6) or message
        super().error(escaped(message))

    @property
    def flags(self) -> list[str]:
        """Return its own, not those of its commands."""
        return [flag for action in self._actions for flag in action.option_strings]

    def nearest_flag(self, given: Sequence[str], cutoff: float = 0.8) -> str:
        """Return "--work-dir: ... --workdir" for the first of what is `given` that is nearly a flag, else ""."""
        for name in (each.partition("=")[0] for each in given if each.startswith("--")):
            found = difflib.get_close_matches(name.replace("_", "-"), self.flags, n=1, cutoff=cutoff)
            if found and name not in self.flags and "." not in name:
                return f"{name}: unknown flag; did you mean {found[0]}?"
        return ""


class _Help(argparse.HelpFormatter):
    """Lines that begin with spaces stay as they are; words with hyphens (tiny-ko, electra-flax) stay whole."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, **keywords})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith(" ") else self._wrapped(line, width, indent) for line in text.split("\n")
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return self._wrapped(" ".join(text.split()), width, "").split("\n")

    def _wrapped(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def exit_codes(codes: Mapping[int, str] = EXIT_CODES) -> str:
    """Return what they mean, for the end of a program's help."""
    lines = (
        textwrap.fill(text, 72, initial_indent=f"  {code:<5d}", subsequent_indent=" " * 7, break_on_hyphens=False)
        for code, text in codes.items()
    )
    return "\n".join(["exit codes:", *lines])


def make_parser(program: str, description: str, epilog: str, commands: Iterable[type[Command]]) -> Parser:
    """Return the parser of a program whose commands are named as their classes; theirs point to its `epilog`."""
    parser = Parser(prog=program, description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    parser.commands = subparsers.choices
    for cls in commands:
        title, text = _docstring(cls)
        text = text or f"{title[0].upper()}{title[1:]}."
        name = cls.__name__.lower()
        command = subparsers.add_parser(name, help=title, description=text, epilog=_end(program, cls))
        command.set_defaults(of_command=(cls, command))
        command.more_help = cls.more_help
        _add_flags(command, cls)
    return parser


def _continued(line: str) -> str:
    """Return a command line as a shell takes it over several lines."""
    flag = r" \1"  # a flag stays with its values
    parts = re.sub(r" (--\S+)", f"\n{flag}", line).split("\n")
    lines = [f"  {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) > _EXAMPLE_WIDTH:
            lines[-1] += " \\"
            lines.append(f"   {part}")
        else:
            lines[-1] += part
    return "\n".join(lines)


def _end(program: str, cls: type[Command]) -> str:
    """Return the end of a command's help."""
    lines = cls.example.split("\n") if cls.example else []
    head = [f"example{'s' if len(lines) > 1 else ''}:", *map(_continued, lines), ""] if lines else []
    return "\n".join([*head, cls.epilog or f"exit codes: {program} --help"])


def parse(parser: Parser, argv: Sequence[str] | None) -> Any:
    """Return the command that was given, made of its flags; a mistake ends the program with a line and code 2."""
    first = next(iter(sys.argv[1:] if argv is None else argv), "").partition("=")[0]
    if first not in parser.flags and any(first in command.flags for command in parser.commands.values()):
        parser.error(f"{first}: expected after the command: {parser.prog} COMMAND {first} ...")
    namespace, unknown = parser.parse_known_args(argv)
    given = vars(namespace)
    cls, command = given.pop("of_command")
    takes_fields = issubclass(cls, Overridden)
    if unknown and not (takes_fields and unknown[0].startswith("--")):
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_fields and unknown:
        fields = {f"--{field.name}" for field in dataclasses.fields(cls.fields())}
        if problem := command.nearest_flag([each for each in unknown if each.partition("=")[0] not in fields]):
            command.error(problem)
        given["overrides"] = tuple(unknown)
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _add_flags(parser: Parser, cls: type) -> None:
    """Add the fields of a class and of its bases, each of which is a group."""
    kinds, fields = hints_of(cls, include_extras=True), {field.name: field for field in dataclasses.fields(cls)}
    one_of = None
    for base in cls.__mro__:
        names = [name for name in base.__dict__.get("__annotations__", ()) if name in fields and name != "overrides"]
        if not names:
            continue
        group: Any = parser if base is cls else parser.add_argument_group(*filter(None, _docstring(base)))
        for name in names:
            flag, keywords = _keywords(kinds[name], fields[name])
            if flag.one_of:
                group = one_of = one_of or parser.add_mutually_exclusive_group(required=True)
            elif group is one_of:
                group = parser
            keywords["help"] = _help(base, name, fields[name].default)
            if flag.positional:
                group.add_argument(name, **keywords)
            else:
                required = fields[name].default is dataclasses.MISSING
                group.add_argument(f"--{name.strip('_').replace('_', '-')}", dest=name, required=required, **keywords)


def _keywords(kind: Any, field: dataclasses.Field[Any]) -> tuple[Flag, dict[str, Any]]:
    """Return a field's flag, and what argparse's add_argument takes; defaults are the dataclass's business."""
    notes: list[Any] = []
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS}
    while (origin := get_origin(kind)) is not None:
        kind, *more = [each for each in get_args(kind) if each is not types.NoneType]
        if origin is Annotated:
            notes = [*more, *notes]
        elif origin is Literal:
            notes.insert(0, tuple(filter(None, (kind, *more))))
            break
        elif origin is tuple:
            keywords |= {"nargs": "+", "action": "extend"}  # given twice, the second adds to the first
        else:
            assert origin in (Union, types.UnionType) and not more, (field.name, kind)
    if kind is bool:
        return Flag(), {**keywords, "action": "store_true"}
    flag = Flag()
    for note in notes:
        if isinstance(note, Flag):
            flag = note
            keywords |= {name: note[i] for i, name in enumerate(("action", "nargs", "const")) if note[i] is not None}
        elif isinstance(note, Range):
            keywords["type"] = in_range(kind, note)
        elif isinstance(note, tuple):
            keywords["choices"] = note
        else:
            keywords["metavar" if isinstance(note, str) else "type"] = note
    if keywords.get("action") == "append":
        del keywords["nargs"]
    return flag, keywords


def in_range(kind: type[Number], allowed: Range) -> Callable[[str], Number]:
    """Return a `type` for argparse: a number within a Range.

    What is none is an error of usage that says what is expected.
    """

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value not in allowed:
            raise argparse.ArgumentTypeError(
                f"{short(text)}: expected a {'whole ' if kind is int else ''}number, {allowed}"
            )
        return value

    return parse


def _help(cls: type, name: str, default: Any) -> str:
    text = _documented(inspect.getfile(cls))[cls.__name__][name]
    if default is False or default in (None, "", (), dataclasses.MISSING) or "(default" in text:
        return text.replace("%", "%%")
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
    return f"{text} (default: {shown})".replace("%", "%%")


def _docstring(cls: type) -> tuple[str, str]:
    """Return its first line, as a title, and the rest."""
    title, _, text = _documented(inspect.getfile(cls))[cls.__name__][""].partition("\n")
    return f"{title[0].lower()}{title[1:].rstrip('.')}", " ".join(text.split())


def fields_help(cls: type, without_default: str) -> str:
    """Return all fields of a configuration with their meaning, default (or `without_default`), type and range."""
    parser = Parser(add_help=False, usage=argparse.SUPPRESS)
    _add_fields(parser, cls, "", without_default)
    return parser.format_help()


def _add_fields(parser: Parser, cls: type, prefix: str, without_default: str) -> None:
    docs, kinds = _documented(inspect.getfile(cls))[cls.__name__], hints_of(cls, include_extras=True)
    text = " ".join(docs[""].partition("\n\n")[0].split())
    has_own = any(not dataclasses.is_dataclass(kinds[field.name]) for field in dataclasses.fields(cls))
    group = parser.add_argument_group(prefix.rstrip(".") or "fields", text) if has_own else parser
    for field in dataclasses.fields(cls):
        kind, notes = kinds[field.name], []
        if dataclasses.is_dataclass(kind):
            _add_fields(parser, kind, f"{prefix}{field.name}.", without_default)  # type: ignore[arg-type]
            continue
        if get_origin(kind) is Annotated:
            kind, *notes = get_args(kind)
        choices = get_args(kind) if get_origin(kind) is Literal else ("true", "false") if kind is bool else ()
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        said = [without_default if default is dataclasses.MISSING else f"default: {json.dumps(default)}"]
        if not choices:
            said += [kind.__name__ if type(kind) is type else f"{kind}".replace("None", "null"), *map(str, notes)]
        text = f"{docs[field.name]} ({', '.join(said)})".replace("%", "%%")
        shown = f"{{{','.join(choices)}}}" if choices else "VALUE"
        group.add_argument(f"--{prefix}{field.name}", metavar=shown, help=text)


@cache
def _documented(path: str) -> dict[str, dict[str, str]]:
    """Return {class: {field: its docstring, "": its own}} of a file: at run time, Python has none of fields."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {"": ast.get_docstring(node) or ""}
            for field, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    found[node.name][field.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found
