"""The attention of a fine-tuning: the kernel for the lengths that it takes, and the same results with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_tools import random_weights

from electra_flax.config.schema import MeshConfig
from electra_flax.finetuning import attention
from electra_flax.finetuning.batches import collate, padded_length
from electra_flax.finetuning.encoding import Row
from electra_flax.finetuning.heads import make_head
from electra_flax.finetuning.step import Network, make_steps
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.model.attention import xla_attention
from electra_flax.model.attention_kernel import kernel_attention
from electra_flax.model.sharding import make_mesh
from electra_flax.trees import nested


def test_each_length_that_the_kernel_takes_is_asked_for(monkeypatch, tmp_path):
    architecture = random_weights(tmp_path).architecture
    longer = dataclasses.replace(architecture.model, max_position_embeddings=512)
    architecture = dataclasses.replace(architecture, model=longer)
    asked = []

    def choose(architecture, tokens, mesh):
        asked.append(tokens)
        assert architecture.generator is None, "a generator's sizes would count"
        return lambda *inputs, **how: asked[-1]

    monkeypatch.setattr(attention, "choose_attention", choose)
    attend = attention.choose_by_length(architecture, make_mesh(MeshConfig()), 300)
    assert asked == [128, 256] and 300 in attention.padded_lengths(300)
    for length, is_kernel in ((16, False), (128, True), (256, True), (300, False)):
        x = jnp.ones((2, length, 32))
        found = attend(x, x, x, jnp.ones((2, length), jnp.int32), None, num_heads=2, rate=0.0)
        assert isinstance(found, int) == is_kernel
    assert all(padded_length(n, 300) in attention.padded_lengths(300) for n in range(3, 301))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Architecture, parameters, training and batch of 128 tokens, dropout on."""
    weights = random_weights(tmp_path_factory.mktemp("weights"))
    sizes = dataclasses.replace(weights.architecture.model, max_position_embeddings=128)
    training = load_training("nsmc", load_task("nsmc"), "", sizes, ["--batch_size", "8", "--max_seq_length", "128"])
    architecture = dataclasses.replace(weights.architecture, model=sizes)
    params = nested({name: weights.read(name) for name in weights.shapes if name.startswith("electra/")})
    rng = np.random.default_rng(0)
    positions = params["electra"]["embeddings"]["position_embeddings"]
    positions["embedding"] = rng.normal(size=(128, *positions["embedding"].shape[1:])).astype(np.float32)
    rows = [Row(i, rng.integers(5, 300, n).astype(np.int32), np.zeros(n, np.int32), np.asarray(i % 2, np.int32), [])
            for i, n in enumerate(rng.integers(100, 129, 8))]  # fmt: skip
    return architecture, params, training, collate(rows, np.arange(8), 8, 128, 0, False)


def run(setting, attend):
    architecture, params, training, batch = setting
    head = make_head(load_task("nsmc"), training.head, architecture.model, 2, training.dropout)
    network = Network(architecture, head, make_mesh(MeshConfig()), 0, False, attend)
    params = {**params, **jax.device_get(head.init(jax.random.key(0)))}
    steps = make_steps(network, training, 10, params)
    logits = steps.predict(params, batch)["logits"]
    _, sums = steps.train(steps.init(params), batch, np.uint32(2**32 - 1))
    return logits, sums["loss"], sums["grad_norm"]


@pytest.mark.slow
def test_an_encoder_with_the_kernel_is_the_same_encoder(setting):
    kernel, calls = kernel_attention(make_mesh(MeshConfig()), jnp.float32, interpret=True), []

    def counted(*inputs, **how):
        calls.append(how["rate"])
        return kernel(*inputs, **how)

    ours = run(setting, attention.by_length({128: counted}))
    assert len(calls) >= 2, "once to predict, once to train"
    for one, other in zip(ours, run(setting, xla_attention), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=0)
