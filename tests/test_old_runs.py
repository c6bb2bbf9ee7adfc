"""Workdirs and shards of an older version open, and the run goes on bit by bit (tests/data/README.md)."""

import json
import tarfile
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest

from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.model.sharding import make_mesh
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state

OLD = Path(__file__).parent / "data/run_of_a0ad5f6.tar.xz"
ON_AMD = Path(__file__).parent / "data/state_at_8_on_amd.npz"
PROCESSOR = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
HAS_ITS_BITS = version("jaxlib") == "0.10.2" and {"avx2", "fma"} <= PROCESSOR


def state_at(folder, step):
    """{name: array} of a checkpoint."""
    config = load_config(folder / "tiny.yaml")
    state = Checkpoints(folder / "run/checkpoints").restore(abstract_state(config), make_mesh(config.mesh), step)
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """The run, gone on with: (its folder, our state at its end, that of the older version)."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")
    where = ["--data", str(folder / "shards"), "--workdir", str(folder / "run")]
    assert main(["pretrain", "--config", str(folder / "tiny.yaml"), *where]) == 0
    return folder, state_at(folder, 8), np.load(folder / "state_at_8.npz")


def test_a_run_of_an_older_version_goes_on(continued):
    folder, ours, theirs = continued
    starts = [record["step"] for record in records(folder / "run/events.jsonl") if record["event"] == "start"]
    assert starts == [0, 4] and (folder / "run/DONE").exists()
    assert set(ours) == set(theirs.files)
    for name in theirs.files:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, rtol=0, err_msg=name)
    for mine, old in zip(records(folder / "run/metrics.jsonl"), records(folder / "metrics_to_8.jsonl"), strict=True):
        assert (mine["step"], mine["split"]) == (old["step"], old["split"])
        np.testing.assert_allclose(mine["loss"], old["loss"], rtol=1e-6)


@pytest.mark.skipif(
    not HAS_ITS_BITS, reason="NOT CHECKED: the last bits, which another XLA or processor rounds otherwise"
)
def test_it_goes_on_bit_by_bit(continued):
    _, ours, theirs = continued
    if "AuthenticAMD" in PROCESSOR:
        theirs = np.load(ON_AMD)
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
