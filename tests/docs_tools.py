"""Commands that documents show: how they are found, and who checks which; test_docs_commands.py does it."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields
from functools import cache, partial
from importlib.metadata import metadata
from pathlib import Path

from data_prep import cli as data_cli
from electra_flax import shipped
from electra_flax.commands import cli as flax_cli
from electra_flax.commands.finetune import Scoring
from electra_flax.config.loading import load_config, load_fields
from electra_flax.config.schema import Config
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.runtime.flags import Command, Overridden, parse
from electra_flax.runtime.tpus import parse_slice
from electra_flax.weights.sources import is_source
from tpu import launch
from tpu.settings import Settings

ROOT = Path(__file__).parents[1]
OPERATORS = {"&&", "||", ";", "|"}
STARTS = re.compile(r"(?:\.venv/bin/)?(?:electra-flax|electra-data|make|python3?|pip|uv|git|gcloud) \S")
# Seconds on two cores and no network: these are run. All others train, compile for minutes, or change a cloud.
CHEAP = {"configs", "vocab", "shard", "inspect", "detect", "fill", "score", "show", "fields"}
OURS = {"electra-flax": flax_cli, "electra-data": data_cli, "tpu.launch": launch}
# Flags that guides name and that are none of ours.
OTHERS_FLAGS = {
    "--section.field": "stands for any field", "--extra_package": "Beam's, within --beam-options",
    "--hparams": "of the original's own programs",
}  # fmt: skip
# What "..." in a command stands for: what every run of it needs.
ELLIPSIS = {"pretrain": ["--config", "demo", "--data", "shards", "--workdir", "run"]}


# ------------------------------------------------------------------------------------------------- what documents show


def unfolded(block: str) -> list[str]:
    """Lines of a shell, those that end in a backslash joined, with their comments."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]


def simple_commands(line: str) -> list[list[str]]:
    """Words of each command of a line, as a shell splits them; a comment is none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in OPERATORS:
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return sorted(path for path in found if not path.name.endswith(".ko.md") and path.name != "CHANGELOG.md")


def blocks() -> dict[str, list[str]]:
    """Lines by the block of a page, or by the preset, that shows them."""
    found = {}
    for path in pages():
        text = path.read_text(encoding="utf-8")
        # GitHub's blocks between fences, and those that are four columns in, which CONTRIBUTING.md has.
        fenced = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.M | re.S)
        columns = re.findall(r"(?<=\n\n)((?:    (?:make|\.ci)\S* .*\n)+)", text)
        found |= {f"{path.name}-{n}": unfolded(block) for n, block in enumerate([*fenced, *columns], 1)}
    for path in sorted(ROOT.glob("configs/*.yaml")):
        (shown,) = re.findall(r"^# Command: +(.*?)(?:  |$)", path.read_text(encoding="utf-8"), re.M)
        found[path.name] = [shown]
    return found


BLOCKS = blocks()


def spans() -> dict[str, list[str]]:
    """Commands in a page's text, which may name one without what it must be given."""
    found = {}
    for path in pages():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
        shown = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
        if commands := [span for span in shown if STARTS.match(span)]:
            found[path.name] = commands
    return found


# ------------------------------------------------------------------------------------------------------- our commands


def check_values(command: Command) -> None:
    """Refuse names that nothing has, which the parser itself does not look up."""
    given = {field.name: getattr(command, field.name) for field in fields(command)}
    if given.get("config"):
        load_config(given["config"], given["overrides"])
    if isinstance(command, launch.Launch):
        settings = load_fields(Settings, given["settings"], given["overrides"], "fields")
        load_config(settings.config, settings.overrides)
    if isinstance(command, Scoring):
        tasks = [given["task"]] if "task" in given else given["tasks"] or ["nsmc"]
        for task in tasks:
            load_training(task, load_task(task), given["preset"], load_config("demo").model, given["overrides"])
    if given.get("topology"):
        parse_slice(given["topology"])
    for source in filter(None, (given.get(name) for name in ("from_", "init_from", "resume_from", "against"))):
        assert is_source(source) or source in shipped.names(), source


def may_be_run(name: str, words: list[str]) -> bool:
    return name in CHEAP and "--runner" not in words and not any("gs://" in word for word in words)


DONE: set[tuple[str, ...]] = set()
"""What was run, in this process."""


def check_ours(program, words: list[str], whole: bool = True, run: bool = True) -> None:
    """Its parser takes it, what it names is there, and it is done where it is cheap and `run`.

    Where it is not `whole`, what else it must be given is left out.
    """
    parser = program.parser()
    name = words[0]
    assert name in parser.commands, f"{parser.prog} {name}: no such command"
    if "..." in words:
        at = words.index("...")
        words = [*words[:at], *ELLIPSIS[name], *words[at + 1 :]]
    if not whole and words[-1] != "--help":
        cls = parser.commands[name].get_default("of_command")[0]
        known = set(parser.commands[name].flags) | (field_flags(cls.fields()) if issubclass(cls, Overridden) else set())
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words
        return
    try:
        command = parse(parser, words)
    except SystemExit as ended:
        assert ended.code == 0 and words[-1] == "--help", words
        return
    check_values(command)
    if run and may_be_run(name, words) and (program.__name__, *words) not in DONE:
        if (out := getattr(command, "out", None)) and Path(out).exists():  # another block's
            shutil.rmtree(out)
        assert program.main(words) == 0, words
        DONE.add((program.__name__, *words))


@cache
def field_flags(cls: type) -> set[str]:
    """Flags of the fields of a configuration."""
    sections = {field.name: field.type for field in fields(cls)} if cls is Config else {}
    if not sections:
        return {f"--{field.name}" for field in fields(cls)}
    config = load_config("demo")
    return {f"--{name}.{field.name}" for name in sections for field in fields(getattr(config, name) or ())}


# ------------------------------------------------------------------------------------------------------ other programs


def check_make(words: list[str], comment: str = "") -> None:
    """What make would do, also with each ARGS that the comment names; what is ours of that is parsed, not run."""
    for more in ([], *map(shlex.split, re.findall(r'ARGS=(?:"[^"]*"|[\w-]+)', comment))):
        command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), *words, *more]
        # The suite itself is run by make, which tells a make inside of it what it was given.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, f"{words} {more}: {done.stderr}"
        for program, arguments in re.findall(
            r"^\S*/(electra-flax|electra-data|python -m tpu.launch) (.*)", done.stdout, re.M
        ):
            check_ours(OURS[program.split()[-1]], shlex.split(arguments), run=False)


def check_python(words: list[str]) -> None:
    """python -m MODULE, of which ours are parsed, or -c PROGRAM, which is run."""
    if words[:2] == ["-m", "tpu.launch"]:
        check_ours(launch, words[2:])
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
        assert all((ROOT / word).exists() for word in words[2:] if word.endswith(".py")), words
    else:
        assert words[0] == "-c" and len(words) == 2, words
        subprocess.run([sys.executable, *words], check=True, capture_output=True)


# pip's own parser, in a process of its own: pip takes the place of modules that others need.
PIP = """
import json, sys
from pip._internal.commands import commands_dict, create_command
name, *arguments = sys.argv[1:]
if name not in commands_dict:
    sys.exit(f"pip {name}: no such command")
print(json.dumps(create_command(name).parse_args(arguments)[1]))
"""


def check_pip(words: list[str]) -> None:
    """pip's own parser takes it, and the extras are ours."""
    command = [sys.executable, "-W", "ignore", "-c", PIP, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)
    extras = {extra for place in places for found in re.findall(r"\[([\w,]+)\]", place) for extra in found.split(",")}
    assert places and extras <= set(metadata("electra-flax").get_all("Provides-Extra") or ()), words


def check_by_help(program: str, words: list[str]) -> None:
    """The program's help of this command names each flag."""
    if shutil.which(program) is None:
        warnings.warn(f"NOT CHECKED: {program} is not here: {program} {' '.join(words)}", stacklevel=1)
        return
    names = [word for word in words if re.fullmatch(r"[a-z]+", word)][: 2 if words[0] == "tool" else 1]
    done = subprocess.run([program, *names, "--help" if program == "uv" else "-h"], capture_output=True, text=True)
    assert re.search(rf"usage: {program} {' '.join(names)}", done.stdout + done.stderr, re.I), words
    flags = {word for word in words if word.startswith("--")}
    assert all(flag in done.stdout for flag in flags), words


@cache
def gcloud_tree():
    """Commands and flags of the gcloud that is here, as its completion of command lines knows them; or None."""
    place = Path(shutil.which("gcloud") or "/bin/none").resolve().parents[1] / "data/cli/gcloud_completions.py"
    return json.loads(place.read_text().partition(" = ")[2]) if place.exists() else None


def check_gcloud(words: list[str]) -> None:
    if (at := gcloud_tree()) is None:
        warnings.warn(f"NOT CHECKED: gcloud is not here: gcloud {' '.join(words)}", stacklevel=1)
        return
    place = 0
    while place < len(words) and words[place] in at["commands"]:
        at, place = at["commands"][words[place]], place + 1
    assert not at["commands"], f"gcloud {' '.join(words[: place + 1])}: no such command"
    for flag in (word.partition("=")[0] for word in words[place:] if word.startswith("--")):
        assert flag in at["flags"], f"gcloud {' '.join(words)}: {flag}"


def check_copy(words: list[str]) -> None:
    shutil.copy(*words)


def check_nothing(words: list[str]) -> None:
    """The shell's own, or the user's editor: nothing to be wrong about."""


CHECKED_BY = {
    "electra-flax": partial(check_ours, flax_cli), "electra-data": partial(check_ours, data_cli),
    "make": check_make, "python": check_python, "python3": check_python, "pip": check_pip, "gcloud": check_gcloud,
    "uv": partial(check_by_help, "uv"), "git": partial(check_by_help, "git"),
    "cp": check_copy, "source": check_nothing, "cd": check_nothing, "$EDITOR": check_nothing,
}  # fmt: skip


def check(words: list[str], comment: str = "") -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if words[0].startswith(".ci/"):
        assert (ROOT / words[0]).stat().st_mode & 0o100, words
        return
    assert program in CHECKED_BY, f"{' '.join(words)}: no test knows {program}; add it to CHECKED_BY"
    if program == "make":
        check_make(arguments, comment)
    else:
        CHECKED_BY[program](arguments)
