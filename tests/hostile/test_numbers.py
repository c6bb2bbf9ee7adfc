"""Numbers without bound in every flag of every command: usage, in one line that says what is expected."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from data_prep import cli as data_cli
from electra_flax.commands import cli
from electra_flax.commands.cli import main
from electra_flax.config import loading
from electra_flax.config.schema import Config
from electra_flax.finetuning.task import Training
from electra_flax.runtime.flags import parse
from tpu import launch
from tpu.settings import Settings

PARSERS = {"electra-flax": cli.parser(), "electra-data": data_cli.parser(), "tpu": launch.parser()}
PRETRAIN = ["pretrain", "--config=c.yaml", "--data=d", "--workdir=w"]
FINETUNE = ["finetune", "--task=t", "--model=m", "--data=d", "--out=o"]
WRONG = ("-1", "nan", "inf", "1e400", str(2**63), str(10**30), "9" * 5000, "0x10", "x", "")


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, each in action.choices.items():
                yield from ((command, flag) for flag in each._actions if flag.option_strings)


FLAGS = [(program, command, flag) for program, parser in PARSERS.items() for command, flag in commands(parser)]
NUMBERS = [each for each in FLAGS if getattr(each[2].type, "__qualname__", "").startswith("in_range")]


def test_no_flag_takes_any_number():
    assert not [(program, command, flag.dest) for program, command, flag in FLAGS if flag.type in (int, float)]
    assert len(NUMBERS) > 35


@pytest.mark.parametrize(("program", "command", "flag"), NUMBERS, ids=lambda each: getattr(each, "dest", each))
def test_a_wrong_number_is_usage(program, command, flag, capsys):
    name = flag.option_strings[-1]
    for value in WRONG:
        with pytest.raises(SystemExit) as ended:
            PARSERS[program].parse_args([command, f"{name}={value}"])
        last = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and f"argument {name}: " in last and "number, " in last and len(last) < 200


@pytest.mark.parametrize("value", ["x", "localhost", ":1", "host:0", "host:65536", "host:a", "\x1b[31m\n"])
def test_an_address_has_a_host_and_a_port(value, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args(["finetune", f"--coordinator={value}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "expected HOST:PORT" in said.splitlines()[-1] and "\x1b" not in said


@pytest.mark.parametrize(
    ("program", "given", "said"),
    [
        ("electra-flax", ["show", "--modle", "x", "--data", "y"], "--modle: unknown flag; did you mean --model?"),
        ("electra-flax", ["export", "--workdri=x", "--out", "y"], "--workdri: unknown flag; did you mean --workdir?"),
        ("electra-flax", ["report", "--workdir", "x", "--outt=y"], "--outt: unknown flag; did you mean --out?"),
        ("electra-flax", ["report", "--workdir", "x", "--zzz"], "unrecognized arguments: --zzz"),
        ("electra-flax", ["--versoin"], "--versoin: unknown flag; did you mean --version?"),
        ("electra-flax", [*PRETRAIN, "--work-dir", "x"], "--work-dir: unknown flag; did you mean --workdir?"),
        ("electra-flax", [*FINETUNE, "--epochs=1", "--seed=1"], "--seed: unknown flag; did you mean --seeds?"),
        ("electra-data", ["inspect", "x", "--jsno"], "--jsno: unknown flag; did you mean --json?"),
        ("electra-data", ["vocab", "--corpu", "x", "--out", "y"], "--corpu: unknown flag; did you mean --corpus?"),
        ("electra-flax", ["--workdir", "w", "show"],
         "--workdir: expected after the command: electra-flax COMMAND --workdir ..."),
        ("tpu", ["ssh", "--wroker", "1", "x"], "--wroker: unknown flag; did you mean --worker?"),
        ("tpu", ["train", "--setings=x"], "--setings: unknown flag; did you mean --settings?"),
    ],
)  # fmt: skip
def test_an_unknown_flag_is_named_with_the_nearest(program, given, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PARSERS[program], given)
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


def test_a_flag_of_several_values_that_is_given_twice_has_all():
    given = [*FINETUNE, "--seeds", "0", "1", "--seeds", "2"]
    assert parse(PARSERS["electra-flax"], given).seeds == (0, 1, 2)


def test_a_field_is_no_mistyped_flag():
    for program, given, kind in (
        ("electra-flax", PRETRAIN, Config),
        ("electra-flax", FINETUNE, Training),
        ("tpu", ["train"], Settings),
    ):
        fields = [f"--{name}=1" for name in loading._fields(kind)]
        taken = {"--config", "--data", "--json"}  # the flag of that name, where there is one
        fields = [each for each in fields if each.partition("=")[0] not in taken]
        assert parse(PARSERS[program], [*given, *fields]).overrides == tuple(fields)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrain", "--simulate-devices", "100000"], "argument --simulate-devices: 100000: expected a whole number"),
        (["show", "--examples", "0"], "argument --examples: 0: expected a whole number, 1 to 10,000"),
        (["fill", "--top", "0"], "argument --top: 0: expected a whole number, 1 to 10,000"),
        (["verify", "--tolerance", "nan"], "argument --tolerance: nan: expected a number, 0 to 1,000,000"),
        (["finetune", "--seeds", "1", "4294967296"], "argument --seeds: 4294967296: expected a whole number, 0 to"),
        (["plan", "--batch", "0"], "argument --batch: 0: expected a whole number, 1 to 16,777,216"),
        (["plan", "--price-per-hour", "0"], "expected a number, more than 0 and at most 1,000,000"),
    ],
)  # fmt: skip
def test_what_was_seen(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert expected in capsys.readouterr().err.splitlines()[-1]
