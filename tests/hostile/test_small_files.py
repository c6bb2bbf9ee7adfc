"""Damaged small files of our own: one line that names the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from electra_flax.config.loading import load_config
from electra_flax.data.manifest import Manifest, ShardInfo
from electra_flax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", "5"), ("vocab_size", -1), ("splits", []), ("splits", {}), ("splits", {"train": 5}),
     ("splits", {"train": [{"file": "x", "examples": -1, "tokens": 1, "bytes": 1}]}), ("sources", [{"path": "a"}]),
     ("cleaning", {"steps": 5}), ("format_version", None), ("seed", None),
     ("splits", {"train": [{"file": "../x", "examples": 1, "tokens": 1, "bytes": 1}]})],
)  # fmt: skip
def test_damaged_manifest(tmp_path: Path, field: str, value: Any) -> None:
    whole = Manifest(128, "a", 5, True, False, "x", 0, 0.0, 3, [], {"train": [ShardInfo("s", 1, 1, 1)]})
    whole.write(tmp_path)
    assert Manifest.read(tmp_path) == whole
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match=r"manifest\.json: .*make the shards again"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "[" * 100_000,
        "a: " + "9" * 5_000 + "\n",
        "a: !!bool maybe\n",
        "a: !!int ''\n",
        "a: !!timestamp x\n",
    ],
)
def test_yaml_without_end(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: "):
        load_config(path)
