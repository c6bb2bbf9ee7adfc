"""How commands end, and the small files that they read: every exception a line and a code of the contract."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from electra_flax.errors import EXIT_CODES, Preempted, RunError, UserError, escaped
from electra_flax.files import decode, parse_lines, parse_yaml, read_bytes, read_json, read_text
from electra_flax.formats import counted
from electra_flax.runtime.ending import run_command
from electra_flax.runtime.interruption import Interruption
from electra_flax.text import without_halves


class JaxRuntimeError(RuntimeError):
    """Named as JAX's own, which would take a second to import."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--out x: y"), 1, "prog: error: --out x: y"),
        (RunError("no finite step"), 3, "prog: error: no finite step"),
        (Preempted("asked to stop: saved"), 75, "prog: asked to stop: saved"),
        (KeyboardInterrupt(), 130, "prog: interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "prog: error: /x: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"/\xff"), 1, r"prog: error: /\udcff: File name too long"),
        (OSError(errno.ENOSPC, "No space left"), 1, "prog: error: OUT: the disk is full: free some space"),
        (MemoryError(), 1, "prog: error: not enough memory"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 17 GB"), 1, "prog: error: not enough memory (RESOURCE_EXHAUSTED: 17 GB)"),
        (
            JaxRuntimeError("INTERNAL: halted\nunexpectedly"),
            70,
            "prog: error: unexpected error: JaxRuntimeError: INTERNAL",
        ),
        (OSError(errno.EIO, "Input/output error", "/x"), 70, "prog: error: unexpected error: OSError"),
        (ConnectionResetError(104, "reset"), 70, "prog: error: unexpected error: ConnectionResetError"),
        (KeyError("step"), 70, "prog: error: unexpected error: KeyError"),
        (UserError("a name\nof \x1b[31mtwo lines"), 1, r"prog: error: a name\nof \x1b[31mtwo lines"),
    ],
    ids=repr,
)
def test_every_end_is_one_line_and_a_code(error, code, line, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def action():
        raise error

    assert run_command("prog", action, "OUT") == code
    assert code in EXIT_CODES
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(line)
    assert err.count("\n") == 1
    kept = list(tmp_path.iterdir())
    assert len(kept) == (code == 70)  # the traceback is for whoever mends it, not for the terminal
    if kept:
        assert str(kept[0]) in err
        assert "in action" in kept[0].read_text()


def test_a_command_that_ends_well_says_nothing(capsys):
    assert run_command("prog", lambda: None) == 0
    assert run_command("prog", lambda: 1) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ends", ["sys.exit(e.run_command('p', lambda: print('x' * 10**6)))",
                                  "e.print_whole('x' * 10**6)"])  # fmt: skip
def test_a_reader_that_has_enough_ends_a_command_quietly(ends):
    program = f"import sys, electra_flax.runtime.ending as e; {ends}"
    both = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert both.stdout.read(10) == b"x" * 10
    both.stdout.close()
    assert both.stderr.read() == b""
    both.stderr.close()
    assert both.wait() == 0


@pytest.mark.parametrize("ends", ["sys.exit(e.run_command('p', lambda: print('x' * 10**6), 'OUT'))",
                                  "sys.exit(e.run_command('p', lambda: print('x'), 'OUT'))",
                                  "e.print_whole('x')"])  # fmt: skip
def test_a_full_disk_at_the_standard_output_is_named(ends):
    program = f"import sys, electra_flax.runtime.ending as e; {ends}"
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1
    assert found.stderr.removeprefix("p: error: ").startswith("the standard output: the disk is full: free some space")
    assert found.stderr.count("\n") == 1


def test_letters_that_print_stay_and_others_are_shown_by_their_code():
    assert escaped("한국 é\t\r\n\x1b[0m\u2028\udcff") == r"한국 é\t\r\n\x1b[0m\u2028\udcff"


def test_one_thing_is_no_plural():
    assert [counted(number, "files") for number in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]


# ---------------------------------------------------------------------------------------------------- small files


@dataclass(frozen=True)
class Part:
    file: str
    examples: int


@dataclass(frozen=True)
class Whole:
    parts: dict[str, list[Part]]
    rate: float = 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"parts": {"train": [{"file": 5, "examples": 1}]}}',
            "parts.train.0.file=5: expected a valid string: make it",
        ),
        (b'{"parts": {"train": [{"file": "a", "examples": "1"}]}}', "parts.train.0.examples='1': expected a valid int"),
        (b'{"parts": {"train": [{"file": "a"}]}}', "parts.train.0.examples: missing"),
        (b'{"parts": {}, "more": 1}', "more: unknown field"),
        (b'{"parts": null}', "parts=None: expected an object"),
        (b"[]", "the whole=[]: expected an object"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON (recursion limit"),
        (b'{"rate": ' + b"9" * 5000 + b"}", "not JSON (number out of range"),
        (b"\xff\xfe", "not JSON"),  # UTF-16 without a letter
        ('{"parts": "나라"}'.encode("cp949"), "CP949"),
    ],
)
def test_a_small_file_is_not_believed(content, said, tmp_path):
    path = tmp_path / "whole.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_json(path, Whole, "make it again")
    assert str(refused.value).startswith(str(path))
    assert said in str(refused.value)


def test_a_small_file_may_begin_with_a_mark_or_be_utf_16(tmp_path):
    path = tmp_path / "whole.json"
    text = '{"parts": {"train": [{"file": "나라", "examples": 1}]}}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert read_json(path, Whole, "") == Whole({"train": [Part("나라", 1)]})


def test_lines_that_cannot_be_read_are_left_out_and_counted():
    data = b'{"file": "a", "examples": 1}\n{"file": "b", "exam\n\n[]\n\xff\n{"file": "c", "examples": 2}'
    assert parse_lines(data, Part) == ([Part("a", 1), Part("c", 2)], 3)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "big").write_bytes(b"12345")
    for path, said in {
        tmp_path / "fifo": "no regular file",
        Path("/dev/zero"): "no regular file",
        tmp_path: "a folder",
        tmp_path / "loop": "cannot be read",
        tmp_path / "absent": "No such file",
        tmp_path / ("n" * 300): "name too long",
        tmp_path / "a\0b": "not a valid file name",
        tmp_path / "big": "5 bytes",
    }.items():
        with pytest.raises(UserError, match=said):
            read_bytes(path, most=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [*x]", "aliases"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("[" * 100_000, "nested more than 20 levels"),
        ("a: !!int x", "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_yaml_is_plain_data_within_limits(text, said):
    with pytest.raises(UserError, match=f"x.yaml: .*{said}"):
        parse_yaml(text, "x.yaml")


def test_bytes_become_text_in_one_way(tmp_path):
    path = tmp_path / "text"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("한국\n".encode(encoding))
        assert read_text(path) == "한국\n"
    path.write_bytes("한국".encode("utf-16-le"))
    assert read_text(path, "utf-16-le") == "한국"
    with pytest.raises(UserError, match=r"x line 2: byte 0xb3 is not UTF-8; it reads as Korean in CP949"):
        decode("abc\n나라이다".encode("cp949"), "x")
    with pytest.raises(UserError, match=r"x line 1: byte 0xff is not UTF-8; save it as UTF-8"):
        decode(b"abc\xff", "x")
    assert without_halves("가\ud83d나 \U0001f600 \udcff") == "가\ufffd나 \U0001f600 \ufffd"


@pytest.mark.parametrize(("saves", "said"), [(True, "saving, then stopping"), (False, "nothing is lost")])
def test_first_ctrl_c_asks_to_stop(saves: bool, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption(None) as interruption:
        interruption.saves = saves
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
    assert f"{said} (Ctrl-C again: stop at once)" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before, "outside, Ctrl-C is whose it was"


@pytest.mark.parametrize(
    ("begun", "code", "said"),
    [
        ("import slow", 130, "prog: interrupted\n"),
        ("exec(open('slow.py').read())", 5, ""),  # elsewhere it is an exception, as ever
    ],
)
def test_ctrl_c_while_a_module_is_imported_is_one_line(begun, code, said, tmp_path):
    """Whatever the module would make of a KeyboardInterrupt: those of numpy and JAX make an ImportError of it."""
    (tmp_path / "slow.py").write_text("""
import time
try:
    print("in", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(5) from None
""")
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from electra_flax.runtime.ctrl_c import hear
hear("prog")
{begun}
"""
    home, pipes = Path(__file__).parents[1], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    there = {**os.environ, "PYTHONPATH": str(home)}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=there, **pipes)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == said
    assert process.returncode == code


def test_each_ctrl_c_is_answered_at_once_whatever_the_main_thread_does():
    """A compiler or a device that hangs keeps Python from running handlers, as this one long call does."""
    program = """
import hashlib
from electra_flax.runtime.interruption import Interruption
with Interruption(None):
    print("in", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "in\n"
        for said in ("again: stop at once", "stopped at once"):
            process.send_signal(signal.SIGINT)
            assert said in process.stderr.readline()
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()
