"""A generator that does not learn: no part of the state, the same samples, the run's own."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, tiny_config
from run_tools import DIE_ONCE_SAVED, end, make_shards, pretrain, records, refusal, start, state_at
from test_step import make_batches

from electra_flax.commands.cli import main
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.training.frozen import Frozen
from electra_flax.training.initial_state import abstract_frozen, init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.step import make_train_step
from electra_flax.trees import flat
from electra_flax.weights.sources import find_weights

FROZEN = {"frozen": "somewhere"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"generator": FROZEN | {"untied_generator": False}}, "frozen=somewhere is a transformer of its own"),
        ({"generator": FROZEN | {"uniform_generator": True}}, "frozen=somewhere is a transformer of its own"),
        ({"generator": FROZEN | {"embedding_sharing": "gdes"}}, "the discriminator has tables of its own; set shared"),
        ({"generator": FROZEN | {"dropout": 0.1}}, "with generator.dropout=0.1: it has none"),
        ({"generator": {"initialize_discriminator_embeddings": True}}, "embeddings=true needs generator.frozen"),
        ({"generator": FROZEN, "objective": {"kind": "masked_tokens"}}, "only a discriminator learns"),
        ({"generator": FROZEN, "optimizer": {"decoupled": True}}, "only a discriminator learns"),
        ({"model": {"embedding_size": 8}, "generator": FROZEN | {
            "embedding_sharing": "separate", "initialize_discriminator_embeddings": True}},
         "needs tables of one width, got the generator's 16 and model.embedding_size=8"),
    ],
)  # fmt: skip
def test_what_cannot_be_frozen_is_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        tiny_config(**changes)


@pytest.mark.slow
def test_a_frozen_generator_is_one_whose_rate_is_0():
    """The discriminator's parameters and moments, and all sums of five steps, bit by bit."""
    off = {"embedding_sharing": "separate", "dropout": 0.0}
    two = {"decoupled": True, "generator_learning_rate": 0.0, "warmup_steps": 0}
    dropout = {"hidden_dropout_prob": 0.1}
    decoupled = tiny_config(generator=off, optimizer=two, model=dropout)
    separate = FROZEN | {"embedding_sharing": "separate"}
    frozen = tiny_config(generator=separate, optimizer={"warmup_steps": 0}, model=dropout)
    mesh = make_mesh(decoupled.mesh, jax.devices()[:1])
    states = {name: init_state(config, mesh) for name, config in (("decoupled", decoupled), ("frozen", frozen))}
    generator = {name: leaf for name, leaf in states["decoupled"].params.items() if name.startswith("generator")}
    (shapes,) = abstract_frozen(frozen)
    assert jax.tree.map(lambda leaf: leaf.shape, generator) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    generator = jax.tree.map(np.asarray, generator)

    def steps(name, config, *given):
        state, step = states[name], make_train_step(config, make_objective(config, SPECIAL), mesh)
        sums = []
        for batch in make_batches(config, 5):
            state, found = step(state, batch, *given)
            sums.append(found)
        return state, sums

    (ours, our_sums), (theirs, their_sums) = steps("frozen", frozen, generator), steps("decoupled", decoupled)
    assert not [name for name in flat(ours) if "generator" in name]
    for name, value in flat(ours.params).items():
        np.testing.assert_array_equal(value, flat(theirs.params)[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, ours.opt_state, theirs.opt_state["discriminator"])
    for mine, other in zip(our_sums, their_sums, strict=True):
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_a_discriminator_may_begin_with_its_tables():
    config = tiny_config(generator=FROZEN | {"initialize_discriminator_embeddings": True})
    mesh = make_mesh(config.mesh)
    shapes = electra.given_shapes(config.architecture)
    arrays = {name: np.full(shape, number, np.float32) for number, (name, shape) in enumerate(shapes.items())}
    before = init_state(config, mesh)
    after = Frozen(arrays, "").initialize(before, mesh)
    for name, value in flat(after.params).items():
        theirs = name.replace("electra/embeddings/", "generator/embeddings/")
        np.testing.assert_array_equal(value, arrays[theirs] if theirs != name else flat(before.params)[name])
    placed = flat(Frozen(arrays, "").place(tiny_config(generator=FROZEN, training={"compute_dtype": "bfloat16"}), mesh))
    assert placed.keys() == arrays.keys() and {leaf.dtype for leaf in placed.values()} == {jnp.dtype("bfloat16")}


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    """Shards, the models of a run, and a run whose generator is that run's, which nothing interrupts."""
    root = tmp_path_factory.mktemp("frozen")
    make_shards(root, sample_corpus)
    assert main(pretrain(root, "teacher")) == 0
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", str(root / "teacher"), "--out", str(root / "models")]) == 0
    text = (root / "tiny.yaml").read_text()
    frozen = f"frozen: {root}/models, initialize_discriminator_embeddings: true, "
    text = text.replace("generator: {", f"generator: {{{frozen}")
    (root / "tiny.yaml").write_text(text + "objective: {temperature_schedule: exponential}\n")
    assert main(pretrain(root, "straight")) == 0
    return root


@pytest.mark.slow
def test_a_run_has_no_trace_of_it(root, capsys):
    """Killed, it goes on as if it had not been; with other weights it does not go on."""
    for before, expected_code in ((DIE_ONCE_SAVED, 9), ("", 0)):
        assert end(start(pretrain(root, "killed"), before))[0] == expected_code
    states = [state_at(root, run) for run in ("straight", "killed")]
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "validation"):
        assert records(root, "killed", split) == records(root, "straight", split)
    assert not [name for name in flat(states[0]) if "generator" in name]
    held_out = records(root, "straight", "validation")
    losses = [record["generator_loss"] for record in held_out.values()]
    assert losses[0] == losses[-1] > 0  # it is the same generator

    run = json.loads((root / "straight/run.json").read_text())
    teacher, digest = find_weights(f"hf:{root}/models/generator"), hashlib.sha256()
    named = {name.replace("electra/", "generator/"): name for name in teacher.shapes}
    for name in sorted(named):
        digest.update(name.encode() + b"\0" + teacher.read(named[name]).tobytes())
    assert run["frozen"] == digest.hexdigest()

    shutil.copytree(root / "models", root / "moved")
    moved = ["--generator.frozen", str(root / "moved")]
    assert main(pretrain(root, "straight", *moved)) == 0  # the same weights at another place
    other = [*moved[:1], f"orbax:{root}/teacher"]
    assert main(pretrain(root, "straight", *other)) == 0
    (root / "straight/run.json").write_text(json.dumps(run | {"frozen": "0" * 64}))
    assert "its generator.frozen had the sha256 000000000000" in refusal(capsys, pretrain(root, "straight", *moved))
    said = refusal(capsys, ["evaluate", "--workdir", str(root / "straight")])
    assert "put the first one back" in said
    (root / "straight/run.json").write_text(json.dumps(run))
    assert main(["evaluate", "--workdir", str(root / "straight")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generator_loss"] == losses[-1]


@pytest.mark.slow
def test_it_is_not_published_again(root):
    out = root / "out"
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", str(root / "straight"), "--out", str(out)]) == 0
    assert json.loads((out / "parity.json").read_text())["discriminator"]["flax"] < 1e-4
    assert not (out / "generator").exists()
    card = (out / "discriminator/README.md").read_text()
    digest = json.loads((root / "straight/run.json").read_text())["frozen"]
    assert f"not trained with it (sha256 {digest[:12]})" in card and "2 to 1, exponential" in card
    assert str(root) not in card


@pytest.mark.slow
def test_other_sizes_and_vocabularies_are_refused(root, capsys):
    for extra, expected in (
        (["--generator.num_hidden_layers", "2"], "its num_hidden_layers is 1, generator.num_hidden_layers 2"),
        (["--generator.embedding_sharing", "separate", "--generator.hidden_size", "32",
          "--generator.initialize_discriminator_embeddings", "false"],
         "its embedding_size is 16, model.embedding_size"),
        (["--generator.frozen", f"hf:{root}/models/discriminator"], "expected a generator"),
        (["--generator.frozen", "tiny-ko"], "tiny-ko: its vocab_size is"),
    ):  # fmt: skip
        assert expected in refusal(capsys, pretrain(root, "other", *extra))
