"""YAML and command-line overrides -> Config, and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from electra_flax.config.schema import Config
from electra_flax.errors import UserError, ranges, short
from electra_flax.files import read_yaml
from electra_flax.shipped import located_config

T = TypeVar("T")
Overrides = Sequence[str] | Mapping[str, object]
"""Fields in place of others: {"training.num_steps": 20}, or as a command is given them."""

_HELP = "electra-flax pretrain --help"
_OLD_NAMES: dict[str, tuple[str, dict[object, str]]] = {
    "objective.electra_objective": ("objective.kind", {True: "replaced_tokens", False: "masked_tokens"}),
    "generator.untied_generator_embeddings": ("generator.embedding_sharing", {False: "shared", True: "separate"}),
}
"""{name of earlier versions: (today's, {value: today's})}: configurations of runs that they began are read as ever."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file or a preset, named; apply `--section.field value` overrides, check everything.

    Raises UserError naming the field, the value and what is allowed.
    """
    return load_fields(Config, located_config(path), overrides, _HELP)


def resolved(config: Config | str | Path, overrides: Overrides = ()) -> Config:
    """Return a configuration, or that of a file as `load_config` takes it, with fields overridden. Raises UserError."""
    given = as_flags(overrides)
    if isinstance(config, Config):
        return fields_from(Config, dataclasses.asdict(config), given, "config", _HELP) if given else config
    return load_config(config, given)


def as_flags(overrides: Overrides) -> list[str]:
    """Return overrides as a command is given them."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"--{name}={_as_text(value)}" for name, value in overrides.items()]


def _as_text(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool | list | tuple | dict) else str(value)


def load_fields(cls: type[T], path: str | Path, overrides: Sequence[str], help_command: str) -> T:
    """Return the fields of a dataclass, from a YAML file and `--field value` overrides; an empty value is the default.

    Raises UserError as `load_config` does.
    """
    values = read_yaml(Path(path))
    if values is None:
        raise UserError(f"{path}: empty: write fields and their values ({help_command})")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected fields and their values, found {type(values).__name__}")
    return fields_from(cls, values, overrides, str(path), help_command)


def fields_from(cls: type[T], values: Mapping[str, Any], overrides: Sequence[str], source: str, help_command: str) -> T:
    """Return the fields of a dataclass, and `--field value` overrides; None is the default; errors name `source`.

    Raises UserError that names the place where the wrong one was given.
    """
    parser = _parser(cls)  # type: ignore[arg-type]
    try:
        found = parser.instantiate(parser.parse_args(list(overrides), namespace=_namespace(cls, values)))
        return cls(**{f.name: found[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
    except OverflowError as error:  # from jsonargparse, which does not say where
        message = f"a number with hundreds of digits: {error}"
    except ArgumentError as error:
        message = _one_line(str(error), cls, help_command)
    raise UserError(_placed(message, source, overrides))


def _namespace(cls: type, values: Mapping[str, Any]) -> Namespace:
    """Return what is given, for jsonargparse. Raises UserError for a section that is none."""
    found, kinds = Namespace(), get_type_hints(cls)
    for name, value in values.items():
        is_section = dataclasses.is_dataclass(kinds.get(name)) and value is not None
        if is_section and not isinstance(value, dict):
            raise UserError(f"{name}: expected fields and their values, or each as --{name}.FIELD VALUE")
        given = {f"{name}.{field}": each for field, each in value.items()} if is_section else {f"{name}": value}
        for key, each in (_renamed(key, each) for key, each in given.items() if each is not None):
            try:
                found[key] = each
            except KeyError as error:  # that can be no field's: empty, or with a space
                raise UserError(str(error)) from None
    return found


def _renamed(name: str, value: Any) -> tuple[str, Any]:
    """Return a field of today and its value for one of an earlier version; others as they are."""
    today, values = _OLD_NAMES.get(name, (name, {}))
    is_known = isinstance(value, bool) and value in values
    return (today, values[value]) if is_known else (name, value)


def config_to_yaml(config: Config) -> str:
    """Return every field, resolved."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def config_fields(config: Config) -> dict[str, Any]:
    """Return {"model.hidden_size": 256, ...}."""
    return dict(flatten(dataclasses.asdict(config)))


def config_differences(old: Config, new: Config) -> dict[str, str]:
    """Return {"model.hidden_size": "256 -> 128", ...} for every field that differs."""
    new_fields = config_fields(new)
    return {
        name: f"{value} -> {new_fields[name]}"
        for name, value in config_fields(old).items()
        if value != new_fields[name]
    }


@cache
def _parser(cls: type) -> ArgumentParser:
    # Without abbreviations: `--model.hid 3` must be an error, not a guess.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False, print_config=None)
    parser.add_class_arguments(cls)
    return parser


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) of every leaf; an empty mapping is one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _fields(cls: type, prefix: str = "") -> dict[str, object | None]:
    """Return {"section.field": its range}."""
    found: dict[str, object | None] = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            found |= _fields(cast(type, kind), f"{prefix}{name}.")
        else:
            found[prefix + name] = ranges(cls).get(name)
    return found


# jsonargparse's words for what users do wrong, over several lines and with its types' names; other words pass as they
# are, on one line.
_UNKNOWN_FIELD = (
    re.compile(r"unrecognized arguments: --(?P<name>[^\s=]+)"),
    re.compile(r"Group '(?P<section>[\w.]+)' does not accept option '(?P<name>[^']+)'"),
    re.compile(r"Option '(?P<name>[^']+)' is not accepted"),
)
_PROBLEM = re.compile(r'(?:Parser key "|argument --)(?P<name>[\w.]+)"?: (?P<problem>.*)')
_WRONG_VALUE = re.compile(r"Expected an? (?P<type>.+?)\. Got value: ?(?P<value>.*?)(?: - Expected .*)?$")
_WRONG_OPTIONAL = re.compile(  # of a field that may be null
    r"Expected a (?P<type><class '\w+'>) - Expected a <class 'NoneType'>.*Given value: ?(?P<value>.*)"
)


def _one_line(message: str, cls: type, help_command: str) -> str:
    """Return jsonargparse's message on one line, with the nearest name where a name is unknown."""
    message = re.sub(r"\s+", " ", message).strip()
    for pattern in _UNKNOWN_FIELD:
        if match := pattern.search(message):
            groups = match.groupdict()
            name = ".".join(filter(None, (groups.get("section"), groups["name"])))
            nearest = _nearest(name, list(_fields(cls)))
            return f"{name}: unknown field; " + (nearest or f"{help_command} lists all fields")
    if match := _PROBLEM.search(message):
        name, problem = match.groups()
        if "Unable to load config" in problem:
            return f"{name}: expected fields and their values, or each as --{name}.FIELD VALUE"
        if wrong := _WRONG_VALUE.search(problem) or _WRONG_OPTIONAL.search(problem):
            expected = re.sub(r"<class '(\w+)'>", r"\1", wrong["type"])
            expected = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", expected)
            allowed = _fields(cls).get(name)
            return f"{name}={short(wrong['value'])}: expected {expected}{f', {allowed}' if allowed else ''}"
        return f"{name}: {short(problem.replace('expected one argument', 'expected a value after it'))}"
    return message.replace("the following arguments are required:", "required and not given:")


def _nearest(name: str, names: Sequence[str]) -> str:
    """Return the known names that are meant, in words: the same but for section and hyphens, or else the most alike."""
    if name in _OLD_NAMES:
        today, values = _OLD_NAMES[name]
        return f"it is {today} now, one of {', '.join(values.values())}"
    last = name.replace("-", "_").rpartition(".")[2]
    found = [known for known in names if known.rpartition(".")[2] == last]
    found = found or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {' or '.join(found)}?" if found else ""


def _placed(message: str, source: str, overrides: Sequence[str]) -> str:
    """Return `message` with fields named as they were given: with -- where an override did, else after `source`."""
    given = {each[2:].partition("=")[0] for each in overrides if each.startswith("--")}
    from_source = 0

    def named(match: re.Match[str]) -> str:
        nonlocal from_source
        from_source += match[0] not in given
        return f"--{match[0]}" if match[0] in given else match[0]

    message, number = _FIELD.subn(named, message)
    is_override = (number and not from_source) or message.startswith("unrecognized arguments")
    return message if is_override else f"{source}: {message}"


# A field's name where a message begins with it, and before every = within.
_FIELD = re.compile(r"^[A-Za-z_][\w.-]*(?=[:=])|(?<= )[A-Za-z_][\w.-]*(?==)")
