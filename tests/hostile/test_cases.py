"""Inputs of public bug reports (../shared/cases), each given to the command that it is for: the exit code that it
should have, within the time limit, and no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import hostile_tools
import jax
import pytest
from conftest import SHARED

from electra_flax.errors import Preempted
from electra_flax.finetuning import run as finetune_run
from electra_flax.weights import parity

CASES = SHARED / "cases/public"
ACCEPTED = Preempted.exit_code  # of a task folder: training, which would begin, is stopped
SHARD = ("--max-seq-length", "32", "--workers", "1", "--validation-fraction", "0")

CORPORA = {
    "bom.json": 0, "bom_modu.json": 0, "bom_namu.json": 0, "bom_only.txt": 1, "bom_wiki_00": 0, "cp949.json": 1,
    "cp949_names": 0, "deep.jsonl": 1, "euckr.xml": 0, "m_sc.json": 1, "namu_real.json": 0, "nfd.txt": 0,
    "predict_short.txt": 0, "u16le.txt": 0, "wq_wiki_00": 0, "y_cp949.yaml": 1,
}  # fmt: skip
ENCODED = {"cp949.json": "cp949", "u16le.txt": "utf-16"}
TASKS = {
    "j_blank": ACCEPTED, "j_lone": ACCEPTED, "j_null": 1, "j_u16": ACCEPTED, "j_u2028": ACCEPTED, "j_unseen": 1,
    "q_cp949": 1, "q_flat": 1, "q_lone": ACCEPTED, "q_longq": ACCEPTED, "q_noctx": 1, "q_nullstart": 1,
    "q_u16": ACCEPTED, "q_utf16off": ACCEPTED, "q_v2": 1, "t_partial": 1, "t_unseen": 1, "y_int": ACCEPTED,
    "y_null": ACCEPTED,
}  # fmt: skip
PARTS = {  # of an export's discriminator
    "config_embedding_size_null.json": "config.json",
    "config_hidden_size_string.json": "config.json",
    "config_no_model_type.json": "config.json",
    "lfs_pointer_model.safetensors": "model.safetensors",
    "tokenizer_config_list.json": "tokenizer_config.json",
    "tokenizer_config_strings.json": "tokenizer_config.json",
}
VOCABULARY_PARTS = {
    "tokenizer_config_list.json": "tokenizer_config.json",
    "tokenizer_config_strings.json": "tokenizer_config.json",
    "vocab_bom_head.txt": "vocab.txt",  # ends within a letter
}
# {weights: (detect, export --dtype float16)}
WEIGHTS = {"plain": (0, 0), "posids": (0, 0), "nan": (1, 1), "big": (0, 1), "noeol": (0, 0), "sharded": (0, 0),
           "encoder": (1, 1)}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory: Any) -> Path:
    """A copy of the inputs, with those that programs make."""
    if not CASES.is_dir():
        pytest.skip("NOT CHECKED: the inputs of public bug reports are not beside this clone (../shared)")
    folder = tmp_path_factory.mktemp("cases")
    for path in CASES.iterdir():
        (folder / path.name).symlink_to(path)
    for program in ("cp949_filename.py", "deep.jsonl.py"):
        subprocess.run([sys.executable, folder / program], cwd=folder, check=True)
    return folder


def run(*arguments: object) -> int:
    with jax.numpy_rank_promotion("allow"):
        return hostile_tools.run(arguments)


def test_no_input_is_forgotten(cases: Path) -> None:
    known = {*CORPORA, *TASKS, *PARTS, *VOCABULARY_PARTS}
    assert known == {path.name for path in cases.iterdir() if path.suffix != ".py"}


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(cases: Path, copy: Path, name: str) -> None:
    shard = ("electra-data", "shard", "--corpus", cases / name, "--vocab", "vocab", *SHARD)
    assert run(*shard, "--out", "new") == CORPORA[name]
    if name in ENCODED:
        assert run(*shard, "--out", "newer", "--encoding", ENCODED[name]) == 0


@pytest.mark.parametrize("name", TASKS)
def test_task_folders(cases: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def stop(folder: str) -> NoReturn:
        raise Preempted("all is read")

    monkeypatch.setattr(finetune_run, "set_up_compiler", stop)
    task = cases / name / "task.yaml"
    assert TASKS[name] == run(
        "electra-flax", "finetune", "--task", task if task.exists() else "korquad", "--model", "export", "--data",
        cases / name, "--out", "new", "--max_seq_length", "64",
    )  # fmt: skip
    assert not Path("new").exists()


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_model(cases: Path, copy: Path, name: str) -> None:
    shutil.copyfile(cases / name, copy / "export/discriminator" / PARTS[name])
    for command in (("detect", "--model", "export", "한국어"), ("export", "--from", "hf:export", "--out", "new")):
        assert run("electra-flax", *command) == 1
    assert not Path("new").exists()


@pytest.mark.parametrize("name", VOCABULARY_PARTS)
def test_parts_of_a_vocabulary(cases: Path, copy: Path, name: str) -> None:
    shutil.copyfile(cases / name, copy / "vocab" / VOCABULARY_PARTS[name])
    assert run("electra-data", "shard", "--corpus", "text.txt", "--vocab", "vocab", *SHARD, "--out", "new") == 1
    assert not Path("new").exists() and not Path("new.partial").exists()


@pytest.mark.slow
def test_weights(cases: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, cases / "make_models.py", "export", "models"], check=True)
    assert sorted(WEIGHTS) == sorted(path.name for path in (copy / "models").iterdir())
    monkeypatch.setattr(parity, "compare", lambda *given: {})
    for name, (detect, export) in WEIGHTS.items():
        assert run("electra-flax", "detect", "--model", f"models/{name}", "한국어") == detect, name
        source = ("--from", f"hf:models/{name}", "--out", f"new-{name}", "--dtype", "float16")
        assert run("electra-flax", "export", *source) == export, name
        assert (copy / f"new-{name}").exists() == (export == 0)
