"""Everything that the product reads, damaged in every way, under the commands that read it: one line, never a
traceback, and nothing that does not end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hostile_tools
import jax
import pytest
from hostile_tools import DAMAGES, FIELDS, copied, fields_of, with_field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_flax.weights import parity

FLAX, DATA = "electra-flax", "electra-data"
RUN = ("--workdir", "run")
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": (DATA, "inspect", "shards"),
    "inspect --json": (DATA, "inspect", "shards", "--json"),
    "shard": (DATA, "shard", "--corpus", "text.txt", "--vocab", "vocab", "--out", "new", "--max-seq-length", "32",
              "--workers", "1"),
    "vocab report": (DATA, "report", "--corpus", "text.txt", "--vocab", "vocab", "--out", "new"),
    "extend": (DATA, "vocab", "--corpus", "text.txt", "--extend", "vocab", "--out", "new"),
    "doctor": (FLAX, "doctor", *RUN),
    "doctor --data": (FLAX, "doctor", "--config", "tiny.yaml", "--data", "shards"),
    "report": (FLAX, "report", *RUN, "--out", "new.html"),
    "evaluate": (FLAX, "evaluate", *RUN),
    "evaluate --data": (FLAX, "evaluate", *RUN, "--data", "shards"),
    "pretrain": (FLAX, "pretrain", "--config", "tiny.yaml", "--data", "shards", *RUN),
    "pretrain anew": (FLAX, "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "new"),
    "init-from": (FLAX, "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "new", "--init-from",
                  "hf:export"),
    "export": (FLAX, "export", *RUN, "--out", "new"),
    "export --from": (FLAX, "export", "--from", "hf:export", "--out", "new"),
    "show": (FLAX, "show", "--model", "export", "--data", "shards"),
    "verify": (FLAX, "verify", "--model", "export"),
    "detect": (FLAX, "detect", "--model", "export", "한국어 문장"),
    "fill": (FLAX, "fill", "--model", "export", "한국어 [MASK]"),
}  # fmt: skip
# {file: (the command that is cheapest where the file is refused, all others that read it)}
TRAIN = "shards/electra-train.tfrecord-00000-of-00001"
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "shards/manifest.json": (
        "inspect",
        ("inspect --json", "doctor --data", "pretrain anew", "evaluate --data", "show"),
    ),
    "shards/vocab.txt": ("inspect", ("pretrain anew", "show")),
    f"{TRAIN}.index": ("inspect", ("pretrain anew",)),
    TRAIN: ("inspect", ("pretrain anew",)),
    "run/metrics.jsonl": ("doctor", ("report", "pretrain", "export")),
    "run/events.jsonl": ("doctor", ("report", "pretrain")),
    "run/config.yaml": ("doctor", ("report", "evaluate", "pretrain", "export")),
    "run/run.json": ("", ("evaluate", "report", "pretrain")),
    "run/verified_shards-0.json": ("", ("pretrain",)),
    "run/manifest.json": ("", ("pretrain", "export")),
    "run/lock": ("", ("pretrain",)),
    "run/DONE": ("doctor", ("report", "pretrain")),
    "run/tokenizer/vocab.txt": ("", ("report", "export", "pretrain")),
    "run/tokenizer/tokenizer_config.json": ("", ("export", "pretrain")),
    "run/tokenizer/tokenizer.json": ("", ("export", "pretrain")),
    **{
        f"run/checkpoints/6/{name}": ("", ("pretrain", "evaluate", "report", "export", "doctor"))
        for name in ("_CHECKPOINT_METADATA", "metrics/metrics", "meta/metadata", "state/_METADATA", "state/_sharding",
                     "state/manifest.ocdbt")
    },
    **{
        f"export/{part}/{name}": (asks, ("show", "verify", "export --from", "init-from"))
        for part, asks in (("discriminator", "detect"), ("generator", "fill"))
        for name in ("config.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")
    },
    **{f"export/discriminator/{name}": ("", ("detect", "show", "verify", "export --from"))
       for name in ("tokenizer.json", "special_tokens_map.json", "flax_model.msgpack")},
    "vocab/vocab.txt": ("shard", ("vocab report", "extend")),
    "vocab/tokenizer_config.json": ("shard", ("vocab report", "extend")),
}  # fmt: skip
JSON = [name for name in FILES if name.endswith((".json", ".jsonl", "metadata", "metrics/metrics"))]
CHEAP = [name for name in JSON if FILES[name][0]]


def run(name: str) -> int:
    with jax.numpy_rank_promotion("allow"), pytest.MonkeyPatch.context() as patch:  # transformers rely on it
        if name.startswith("export"):
            patch.setattr(parity, "compare", lambda *given: {})  # of what was written, which is whole
        return hostile_tools.run(COMMANDS[name])


@pytest.mark.parametrize("file", [name for name, (cheap, _) in FILES.items() if cheap])
def test_a_damaged_file_costs_a_line(whole: Path, copy: Path, file: str) -> None:
    for damage in DAMAGES.values():
        damage(copy / file)
        assert run(FILES[file][0]) in (0, 1)
        (copy / file).rmdir() if (copy / file).is_dir() else (copy / file).unlink(missing_ok=True)
        (copy / file).write_bytes((whole / file).read_bytes())


def change_field(path: Path, draw: Any) -> None:
    text = path.read_text()
    place = draw(st.sampled_from(fields_of(json.loads(text.split("\n{")[0]))), label="field")
    path.write_text(with_field(text, place, draw(st.sampled_from([*FIELDS, ...]), label="value")))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_field_costs_a_line(whole: Path, copy: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(CHEAP), label="file")
    change_field(copy / file, data.draw)
    try:
        assert run(FILES[file][0]) in (0, 1)
    finally:
        (copy / file).write_bytes((whole / file).read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(("file", "damage"), [(file, [*DAMAGES][5 * i % len(DAMAGES)]) for i, file in enumerate(FILES)])
def test_every_command_over_a_damaged_file(whole: Path, copy: Path, file: str, damage: str) -> None:
    run_all(whole, copy, file, damage)


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_over_every_damaged_file(whole: Path, copy: Path, file: str, damage: str) -> None:
    run_all(whole, copy, file, damage)


def run_all(whole: Path, copy: Path, file: str, damage: str) -> None:
    for command in FILES[file][1]:
        copied(whole, copy)
        DAMAGES[damage](copy / file)
        assert run(command) in (0, 1)


@pytest.mark.long
@pytest.mark.parametrize("file", JSON)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_command_over_damaged_fields(whole: Path, copy: Path, file: str, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(FILES[file][1]), label="command")
    copied(whole, copy)
    change_field(copy / file, data.draw)
    assert run(command) in (0, 1)
