"""YAML and command-line overrides -> Config, and back."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from electra_flax.config import Config
from electra_flax.errors import UserError
from electra_flax.files import read_yaml

set_parsing_settings(docstring_parse_attribute_docstrings=True)

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `--section.field value` overrides, checks everything.

    Raises UserError naming the field, the value and what is allowed.
    """
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file; the presets are in configs/, for example configs/demo.yaml")
    return load_fields(Config, path, overrides, "electra-flax pretrain --help")


def load_fields(cls: type[T], path: str | Path, overrides: Sequence[str], help_command: str) -> T:
    """Fields of a dataclass, from a YAML file and `--field value` overrides. Raises UserError as `load_config` does."""
    read_yaml(Path(path))  # its limits hold before jsonargparse expands what is in the file
    try:
        return _instantiate(cls, _parser(cls).parse_args(["--fields-from", str(path), *overrides]))
    except ArgumentError as error:
        raise UserError(f"{path}: {_one_line(str(error), cls, help_command)}") from None


def fields_from(cls: type[T], values: Mapping[str, Any], overrides: Sequence[str], source: str, help_command: str) -> T:
    """Fields of a dataclass of plain values, and `--field value` overrides; `source` is named in errors.

    Raises UserError as `load_config` does.
    """
    given = [f"--{name}={value}" for name, value in values.items()]
    try:
        return _instantiate(cls, _parser(cls).parse_args([*given, *overrides]))
    except ArgumentError as error:
        raise UserError(f"{source}: {_one_line(str(error), cls, help_command)}") from None


def from_dict(cls: type[T], values: dict[str, Any], source: str, help_command: str) -> T:
    """A dataclass from what dataclasses.asdict made of it. Raises UserError as `load_config` does."""
    try:
        return _instantiate(cls, _parser(cls).parse_object(values))
    except ArgumentError as error:
        raise UserError(f"{source}: {_one_line(str(error), cls, help_command)}") from None


def config_to_yaml(config: Config) -> str:
    """Every field, resolved."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def fields_help(cls: type) -> str:
    """All fields with their meaning, type and default, for `--help`."""
    return _parser(cls).format_help()


def config_fields(config: Config) -> dict[str, Any]:
    """{"model.hidden_size": 256, ...}"""
    return dict(_flatten(dataclasses.asdict(config)))


def config_differences(old: Config, new: Config) -> dict[str, str]:
    """{"model.hidden_size": "256 -> 128", ...} for every field that differs."""
    new_fields = config_fields(new)
    return {
        name: f"{value} -> {new_fields[name]}"
        for name, value in config_fields(old).items()
        if value != new_fields[name]
    }


def _parser(cls: type) -> ArgumentParser:
    # Made once: it parses cls's source, which takes a quarter of a second and which Python 3.11 gets wrong where an
    # object that dies meanwhile prints a traceback ("AST constructor recursion depth mismatch"): fields were missing.
    if cls not in _parsers:
        # Without abbreviations: `--model.hid 3` must be an error, not a guess.
        parser = ArgumentParser(
            exit_on_error=False, allow_abbrev=False, add_help=False, print_config=None, usage=argparse.SUPPRESS
        )
        parser.add_argument("--fields-from", action="config", help=argparse.SUPPRESS)
        parser.add_class_arguments(cls)
        _parsers[cls] = parser
    return _parsers[cls]


_parsers: dict[type, ArgumentParser] = {}


def _instantiate(cls: type[T], namespace: Any) -> T:
    found = _parser(cls).instantiate(namespace)
    return cls(**{f.name: found[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _field_names(cls: type) -> list[str]:
    return [
        (f"{name}.{field.name}" if isinstance(field, dataclasses.Field) else name)
        for name, kind in get_type_hints(cls).items()
        for field in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else [name])
    ]


_UNKNOWN_FIELD = (
    re.compile(r"unrecognized arguments: --(?P<name>[\w.]+)"),
    re.compile(r"Group '(?P<section>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
)
_WRONG_VALUE = re.compile(r'Parser key "(?P<name>[\w.]+)": Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)')


def _one_line(message: str, cls: type, help_command: str) -> str:
    """jsonargparse's message on one line, with the nearest name where a name is unknown."""
    message = re.sub(r"\s+", " ", message).strip()
    for pattern in _UNKNOWN_FIELD:
        if match := pattern.search(message):
            groups = match.groupdict()
            name = ".".join(filter(None, (groups.get("section"), groups["name"])))
            nearest = difflib.get_close_matches(name, _field_names(cls), n=1, cutoff=0.5)
            hint = f"the nearest is {nearest[0]}" if nearest else f"{help_command} lists all fields"
            return f"unknown field {name}; {hint}"
    if match := _WRONG_VALUE.search(message):
        expected = re.sub(r"<class '(\w+)'>", r"\1", match["type"])
        expected = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", expected)
        return f"{match['name']}={match['value']}: expected {expected}"
    return message
