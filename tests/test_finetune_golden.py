"""Fine-tuning in the mode that copies the original, against what it computed (docs/semantics.md, section 13)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import clip_by_recorded_norms

from electra_flax.config.schema import MeshConfig
from electra_flax.finetuning.heads import make_head
from electra_flax.finetuning.step import Network, make_steps
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.trees import flat, nested
from electra_flax.weights.names import from_tf1
from electra_flax.weights.sources import find_weights


@pytest.fixture(scope="module")
def encoder(golden):
    """Architecture and parameters of checkpoint A, dropout off."""
    weights = find_weights(f"tf1:{golden}/tf1_ckpt/A_small_gen0.25/model.ckpt-200")
    sizes = dataclasses.replace(weights.architecture.model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    names = [name for name in weights.shapes if name.startswith("electra/")]
    return dataclasses.replace(weights.architecture, model=sizes), nested({name: weights.read(name) for name in names})


def read_head(values, prefix):
    """task_specific/NAME/... as ours."""
    found = {}
    for name in values.files:
        if name.startswith(f"{prefix}/task_specific/"):
            found["task_specific/" + name.split("/", 3)[3]] = values[name]
    return nested(found)


def batch_of(values, target):
    names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
    batch = {ours: values[f"in/{theirs}"] for ours, theirs in names.items()}
    return batch | {"target": target, "weight": np.ones(len(target), np.float32)}


def hidden_of(encoder, batch):
    architecture, params = encoder
    inputs = (jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask", "token_type_ids"))
    return jax.jit(electra.apply_encoder, static_argnums=0)(architecture, params, *inputs)


def test_ten_steps_of_a_classification(golden, encoder, monkeypatch):
    architecture, params = encoder
    folder = golden / "finetune"
    trace = np.load(folder / "classification_gather_batches_trace.npz")
    weights = np.load(folder / "classification_gather_weights.npz")
    said = json.loads((folder / "classification_gather_config.json").read_text())
    norms_there = jnp.asarray(trace["tf_norm"])
    monkeypatch.setattr("optax.clip_by_global_norm", lambda largest: clip_by_recorded_norms(norms_there))
    task = load_task("mnli")
    overrides = [f"--learning_rate={said['learning_rate']}", "--dropout=0", "--batch_size=8", "--epochs=1"]
    training = load_training("mnli", task, "original", architecture.model, overrides)
    assert (training.layer_decay, training.weight_decay) == (said["layerwise_lr_decay"], said["weight_decay"])
    assert training.warmup_proportion == said["warmup_proportion"]
    head = make_head(task, training.head, architecture.model, 3, training.dropout)
    network = Network(architecture, head, make_mesh(MeshConfig()), pad_id=0, is_tagging=False)
    params = params | read_head(weights, "init")
    steps = make_steps(network, training, said["num_train_steps"], params)
    state, losses, norms = steps.init(params), [], []
    for i in range(said["num_train_steps"]):
        batch = {
            "input_ids": trace["input_ids"][i], "attention_mask": trace["input_mask"][i],
            "token_type_ids": trace["segment_ids"][i], "target": trace["mnli_label_ids"][i],
            "weight": (trace["task_id"][i] == 0).astype(np.float32),
        }  # fmt: skip
        if i == 0:
            np.testing.assert_allclose(steps.predict(params, batch)["logits"], trace["out0/logits"], atol=1e-5)
        state, sums = steps.train(state, batch, 0)
        losses.append(float(sums["loss"]))
        norms.append(float(sums["grad_norm"]))
    np.testing.assert_allclose(losses, trace["loss"], rtol=1e-4)
    np.testing.assert_allclose(norms, trace["dense_norm"], rtol=1e-4)
    after = read_head(weights, "after_10_steps")
    ours = flat(jax.device_get(state.params))
    for name in weights.files:
        if name.startswith("after_10_steps/electra/"):
            np.testing.assert_allclose(ours[from_tf1(name.partition("/")[2])], weights[name], atol=1e-4, err_msg=name)
    for name, value in flat(after).items():
        np.testing.assert_allclose(ours[name], value, atol=1e-4, err_msg=name)
    moved = np.abs(ours["task_specific/dense/kernel"] - read_head(weights, "init")["task_specific"]["dense"]["kernel"])
    assert moved.max() > 5e-4, "a test that would pass without learning"


def test_answers_forward(golden, encoder):
    values = np.load(golden / "finetune/qa_squadv1_forward.npz")
    target = np.stack(
        [values[f"in/squadv1_{name}"] for name in ("start_positions", "end_positions", "is_impossible")], axis=1
    )
    batch = batch_of(values, target)
    head = make_head(load_task("squad1"), "original", encoder[0].model, 0, dropout=0.0)
    params, hidden = read_head(values, "head"), hidden_of(encoder, batch)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    np.testing.assert_allclose(head.loss(params, hidden, batch, None), values["train/loss"], atol=1e-5)
    found = head.predict(params, hidden, batch)
    np.testing.assert_allclose(found["impossible"], values["predict/answerable_logit"], atol=1e-5)
    for name in ("start_top_log_probs", "end_top_log_probs"):
        np.testing.assert_allclose(found[name], values[f"predict/{name}"], rtol=1e-5, atol=1e-5)
    for name in ("start_top_index", "end_top_index"):
        # Positions outside the context share one logit, so their order means nothing.
        real = values[f"predict/{name.replace('index', 'log_probs')}"] > -100
        np.testing.assert_array_equal(np.asarray(found[name])[real], values[f"predict/{name}"][real])


def test_scores_forward(golden, encoder):
    values = np.load(golden / "finetune/sts_forward.npz")
    batch = batch_of(values, values["in/sts_targets"])
    head = make_head(load_task("sts"), "original", encoder[0].model, 0, dropout=0.0)
    params, hidden = read_head(values, "head"), hidden_of(encoder, batch)
    np.testing.assert_allclose(head.loss(params, hidden, batch, None), values["out/loss"], atol=1e-5)
    found = head.predict(params, hidden, batch)["logits"]
    np.testing.assert_allclose(found / load_task("sts").largest_score, values["out/predictions"], atol=1e-5)
