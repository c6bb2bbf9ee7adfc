"""A run that this machine's memory cannot hold is refused before anything is compiled, with the two numbers."""

from pathlib import Path

import jax
import pytest

from electra_flax.config.loading import load_config
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.runtime import host_memory

CONFIGS = Path(__file__).parents[1] / "configs"
MEMINFO = "MemTotal:  9 kB\nMemAvailable:    2000 kB\nSwapFree:   500 kB\n"


def config_of(name, *overrides):
    return load_config(CONFIGS / f"{name}.yaml", overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("electra_small", []),
        ("koelectra_base_v3", []),
        ("tiny", []),  # one transformer
        ("electra_small", ["--generator.uniform_generator=true"]),
        ("electra_small", ["--objective.kind=masked_tokens"]),
    ],
)
def test_the_least_is_little_less_than_the_model(name, overrides):
    config = config_of(name, *overrides)
    shapes = jax.eval_shape(lambda: electra.init(config.architecture, jax.random.key(0)))
    exact = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 0.9 * exact < host_memory.least_parameters(config.architecture) <= exact


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--model.vocab_size=16777216", "--model.embedding_size=1048576"], "needs at least 2,252 TB"),
        (["--model.hidden_size=1048576"], "TB of this machine's memory, which has 8 GB left"),
        (["--generator.intermediate_size=1048576", "--generator.hidden_size=65536"], "make model, generator or"),
        (["--model.max_position_embeddings=1048576"], "8.67 GB for parameters"),
        (["--training.batch_size=16777216"], "activations): make"),
    ],
)
def test_what_cannot_fit_is_refused(overrides, expected, monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 8_000_000_000)
    config = config_of("demo", *overrides)
    with pytest.raises(UserError) as error:
        host_memory.check_fits(config, make_mesh(config.mesh))
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [["--mesh.fsdp=8"], ["--mesh.tensor=-1", "--mesh.data=1"]])
def test_devices_that_split_the_state_need_less(overrides, monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 3_000_000_000)
    big = config_of("koelectra_base_v3", "--training.batch_size=8", "--training.compute_dtype=bfloat16")
    with pytest.raises(UserError, match=r"which has 3 GB left \(15.6 GB for parameters"):
        host_memory.check_fits(big, make_mesh(big.mesh))
    split = config_of("koelectra_base_v3", "--training.batch_size=8", *overrides)
    host_memory.check_fits(split, make_mesh(split.mesh))


def test_what_is_available_is_the_least_of_the_limits(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert host_memory.available(tmp_path / "meminfo", tmp_path) == 2_500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory.available(tmp_path / "meminfo", tmp_path) == 2_500 * 1024
    (tmp_path / "memory.max").write_text("1000\n")
    assert host_memory.available(tmp_path / "meminfo", tmp_path) == 1000
    assert host_memory.available(tmp_path / "nothing", tmp_path) is None
    assert host_memory.available() > 0
