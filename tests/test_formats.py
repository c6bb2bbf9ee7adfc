"""Numbers and names as people read them, and the helps of all commands on a terminal of 80 columns."""

import shlex

import pytest
from rich.cells import cell_len

import data_prep.cli
from electra_flax import formats
from electra_flax.commands import cli
from electra_flax.runtime.flags import parse
from tpu import launch


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.number(9.80028969656343e-07), "9.8e-07"),
        (formats.number(0.0005980861), "0.0005981"),
        (formats.number(0.0005), "0.0005"),
        (formats.number(6.7801019448), "6.78"),
        (formats.number(14_709.6), "14,710"),
        (formats.number(-999.96), "-1,000"),
        (formats.number(0), "0"),
        (formats.number(float("nan")), "nan"),
        (formats.scaled(999.4), "999"),
        (formats.scaled(999_600), "1M"),
        (formats.scaled(2_400_000), "2.4M"),
        (formats.size(0), "0 B"),
        (formats.size(60_563), "60.6 kB"),
        (formats.size(1e9), "1 GB"),
        (formats.size(5e15), "5,000 TB"),
        (formats.device_memory(15.48 * 2**30), "15.48 GiB"),
        (formats.duration(0.4), "0 s"),
        (formats.duration(59.6), "1 min"),
        (formats.duration(252), "4 min 12 s"),
        (formats.duration(3 * 3600 + 20 * 60 + 5), "3 h 20 min"),
        (formats.duration(86_400), "1 day"),
        (formats.duration(9.2 * 86_400), "9 days 4 h"),
        (formats.rate(4.3712, "steps"), "4.37 steps/s"),
        (formats.rate(14_709.6, "tokens"), "14,710 tokens/s"),
        (formats.counted(1, "files"), "1 file"),
        (formats.counted(1200, "files"), "1,200 files"),
    ],
)
def test_numbers_are_as_people_print_them(shown, expected):
    assert shown == expected


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["tiny-ko"], ["tiny-ko"]),
        (["/a/very/long/path/to/ko/export"], ["ko/export"]),
        (["runs/demo/tiny-ko/export", "runs/demo/export"], ["tiny-ko/export", "demo/export"]),
        (["a/ko/run", "b/ko/run"], ["a/ko/run", "b/ko/run"]),
        (["ko", "x/ko", "x/ko/"], ["ko", "x/ko (1)", "x/ko (2)"]),
        (["/a/b/ko", "/a/b/ko"], ["ko (1)", "ko (2)"]),
        (["orbax:runs/ko", "hf:monologg/koelectra-base-v3-discriminator"], ["ko", "koelectra-base-v3-discriminator"]),
        (["gs://bucket/runs/ko/workdir", "one/seeds/0"], ["ko/workdir", "one/seeds/0"]),
    ],
)
def test_a_row_has_the_name_that_tells_it_from_the_others(places, expected):
    assert formats.labels(places) == expected


def test_the_current_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert formats.labels(["."]) == [tmp_path.name]


PROGRAMS = {"electra-flax": cli.parser, "electra-data": data_prep.cli.parser, "python -m tpu.launch": launch.parser}
COMMANDS = [(program, name) for program, make in PROGRAMS.items() for name in ("", *make().commands)]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_help_fits_a_terminal_and_its_examples_are_right(program, name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    parser = PROGRAMS[program]()
    with pytest.raises(SystemExit) as ended:
        parse(parser, [name, "--help"] if name else ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert [line for line in shown.splitlines() if cell_len(line) > 80] == []
    assert shown.count("comes first") == (not name and program != "python -m tpu.launch"), "said once"
    commands = shown.replace(" \\\n", "").splitlines()
    examples = [line.strip() for line in commands if line.startswith(f"  {program} ")]
    assert bool(examples) == (bool(name) and program != "python -m tpu.launch" and name != "configs")
    for example in examples:
        given = shlex.split(example.removeprefix(program))
        assert given[0] == name and parse(PROGRAMS[program](), given)
