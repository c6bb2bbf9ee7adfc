"""The way to the first step: a start that finds its program compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from electra_flax.errors import UserError
from electra_flax.runtime import compiler
from electra_flax.runtime.host_memory import give_back_unused


def test_giving_memory_back_harms_nothing():
    give_back_unused()


COMPILE = """
import json, logging, sys
import jax
from electra_flax.runtime.compiler import compile_step, set_up_compiler
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
logging.basicConfig(level=logging.INFO, format="%(message)s")
set_up_compiler(sys.argv[1])
compiled = compile_step("product", jax.jit(lambda x: x @ x), jax.ShapeDtypeStruct((64, 64), "float32"))
print(json.dumps(float(compiled(jax.numpy.ones((64, 64)))[0, 0])))
"""


def compile_with_cache(folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder)], capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip
    assert json.loads(done.stdout) == 64
    return done.stderr


def test_a_second_start_finds_the_program(tmp_path):
    assert "product compiled in" in compile_with_cache(tmp_path / "cache")
    assert "product found in the compilation cache in" in compile_with_cache(tmp_path / "cache")
    assert "product compiled in" in compile_with_cache("")


@pytest.mark.slow
def test_the_cache_may_be_a_bucket(google_storage):
    assert "product compiled in" in compile_with_cache("gs://bucket/cache", **google_storage)
    assert "product found in the compilation cache in" in compile_with_cache("gs://bucket/cache", **google_storage)


def test_a_bucket_without_its_library_is_refused(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gcsfs"):
        compiler.set_up_compiler("gs://bucket/cache")


COMPILE_STEP = """
import jax
from golden_tools import tiny_config
from electra_flax.training import initial_state, step
from electra_flax.training.objectives import make_objective
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model.sharding import make_mesh
config = tiny_config(
    model=dict(vocab_size=1000, embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024,
               num_hidden_layers=1, max_position_embeddings=128, hidden_dropout_prob=0.1,
               attention_probs_dropout_prob=0.1),
    data=dict(max_seq_length=128), training=dict(batch_size=32),
)
objective = make_objective(config, SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4))
train_step = step.make_train_step(config, objective, make_mesh(config.mesh))
train_step.lower(initial_state.abstract_state(config), initial_state.abstract_batch(config)).compile()
"""


@pytest.mark.slow
def test_the_cpu_compiler_takes_seconds_for_a_step():
    """Tests run with optimisations off; with them, chained hashes once took LLVM more than half an hour."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", COMPILE_STEP], check=True, timeout=240, env=environment)
