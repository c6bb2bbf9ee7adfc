"""Samples that a frozen generator writes ahead: the run that learns from them is the one that samples as it goes."""

import json
import shutil

import jax
import numpy as np
import pytest
from golden_tools import SPECIAL, tiny_config
from run_tools import DIE_ONCE_SAVED, end, make_shards, pretrain, records, refusal, start, state_at
from test_step import make_batches

from electra_flax.commands.cli import main
from electra_flax.data.corrupted import Corrupted, Track
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.model.attention import xla_attention
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.workdir import Workdir
from electra_flax.training.corrupt import make_sample
from electra_flax.training.initial_state import init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.step import make_train_step
from electra_flax.trees import nested

FROZEN = {"frozen": "somewhere"}


def test_steps_from_samples_are_those_with_the_generator():
    """Parameters and moments of three steps, bit by bit; nothing is summed of a generator."""
    online = tiny_config(generator=FROZEN, model={"hidden_dropout_prob": 0.1}, optimizer={"warmup_steps": 0})
    cached = tiny_config(
        generator=FROZEN, model={"hidden_dropout_prob": 0.1}, optimizer={"warmup_steps": 0},
        data={"corrupted": "there"},
    )  # fmt: skip
    mesh, random = make_mesh(online.mesh, jax.devices()[:1]), np.random.default_rng(0)
    shapes = electra.given_shapes(online.architecture)
    generator = nested({name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()})
    ours, theirs = (make_objective(config, SPECIAL) for config in (cached, online))
    sample = make_sample(online, theirs, mesh, xla_attention, True)
    steps = make_train_step(cached, ours, mesh), make_train_step(online, theirs, mesh)
    states = [init_state(config, mesh) for config in (cached, online)]
    for number, batch in enumerate(make_batches(online, 3)):
        ids, _ = sample(generator, batch, np.int32(number))
        states[0], sums = steps[0](states[0], batch | {"sampled_ids": ids})
        states[1], all_sums = steps[1](states[1], batch, generator)
        assert float(sums["replaced"]) > 0
        assert all_sums.keys() - sums.keys() == {"generator_nll", "generator_correct", "generator_sampled_correct"}
        for name in sums:
            np.testing.assert_array_equal(sums[name], all_sums[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert "generator_loss" not in ours.summarize({name: np.asarray(value) for name, value in sums.items()})


def test_what_is_written_is_read_and_damage_is_refused(tmp_path, monkeypatch):
    track = Track("train-0", 5, 2, 3, 70_000)
    monkeypatch.setattr("electra_flax.data.corrupted._PART_BYTES", 2 * track.record.itemsize)
    folder = Corrupted.begin(tmp_path / "out", {"training.seed": "1"}, "runs/teacher")
    assert not (tmp_path / "out").exists()  # a refusal that comes later leaves nothing
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lock").touch()
    ids = np.arange(30).reshape(5, 2, 3) + 65_530
    for part in track.parts():
        records_of = np.zeros(part.end - part.first, track.record)
        records_of["ids"] = ids[part.first : part.end]
        with pytest.raises(UserError, match="of 3 parts are written: the same electra-flax corrupt goes on"):
            folder.check_written([track])
        folder.write(part, records_of)
    again = Corrupted.open(tmp_path / "out", "out")
    again.check_written([track])
    assert again.source == "runs/teacher"
    again.verify([track], None)
    for number in range(7):  # two that are read ahead
        np.testing.assert_array_equal(again.ids_of(track)(number)["sampled_ids"], ids[min(number, 4)])
    again.check_same({"training.seed": "1"}, "fix")
    with pytest.raises(UserError, match="out: written with training.seed=1, this run has 2: fix"):
        again.check_same({"training.seed": "2"}, "fix")
    memory = tmp_path / "verified.json"
    again.verify([track], memory)
    with monkeypatch.context() as patch:  # what was read once is not read again
        patch.setattr("electra_flax.data.corrupted.read_bytes", lambda *given: pytest.fail("read again"))
        again.verify([track], memory)
    path = tmp_path / "out" / track.parts()[1].name
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="train-0-00001.npy: cut off or damaged"):
            again.verify([track], None)
    path.unlink()
    with pytest.raises(UserError, match="train-0-00001.npy: missing: the same"):
        again.verify([track], None)


def test_samples_need_their_generator():
    with pytest.raises(UserError, match=r"data.corrupted=there needs generator.frozen"):
        tiny_config(data={"corrupted": "there"})


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    """Shards, a configuration with a generator that a run has trained, and what it samples."""
    root = tmp_path_factory.mktemp("corrupt")
    make_shards(root, sample_corpus)
    assert main(pretrain(root, "teacher")) == 0
    text = (root / "tiny.yaml").read_text()
    text = text.replace("generator: {", f"generator: {{frozen: {root}/teacher, ")
    (root / "tiny.yaml").write_text(text + "objective: {temperature_schedule: exponential}\n")
    return root


def corrupt(root, out, *extra):
    return ["corrupt", *pretrain(root, out, *extra)[1:5], "--out", str(root / out), *extra]


VARIANTS = {
    "plain": [],
    "words": ["--masking.unit", "word", "--training.gradient_accumulation_steps", "2"],
    "spans": ["--masking.unit", "span", "--masking.final_mask_prob", "0.3"],
    "packed": ["--data.packing", "best_fit", "--generator.initialize_discriminator_embeddings", "true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_from_samples_is_the_run_with_the_generator(root, name):
    extra, given = VARIANTS[name], ["--data.corrupted", str(root / f"{name}-samples")]
    assert main(corrupt(root, f"{name}-samples", *extra)) == 0
    assert main(pretrain(root, f"{name}-online", *extra)) == 0
    assert main(pretrain(root, f"{name}-cached", *extra, *given)) == 0
    online, cached = (state_at(root, f"{name}-{kind}") for kind in ("online", "cached"))
    for ours, theirs in zip(*map(jax.tree.leaves, (online, cached)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "validation"):
        ours, theirs = (records(root, f"{name}-{kind}", split) for kind in ("cached", "online"))
        for step in theirs:
            shared = {key: value for key, value in theirs[step].items() if not key.startswith("generator_")}
            assert ours[step] == shared
    digests = [json.loads((root / f"{name}-{kind}/run.json").read_text())["frozen"] for kind in ("online", "cached")]
    assert digests[0] == digests[1]


def test_what_is_no_folder_of_samples_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thing").touch()
    (tmp_path / "samples").mkdir()
    manifest = tmp_path / "samples/manifest.json"
    for name, expected in (("file", "cannot be read as a folder"), ("other", "holds something else")):
        with pytest.raises(UserError, match=f"--out .*{name}: {expected}"):
            Corrupted.begun(tmp_path / name)
    with pytest.raises(UserError, match="given: no manifest.json there: expected a folder that electra-flax corrupt"):
        Corrupted.open(tmp_path / "samples", "given")
    assert Corrupted.begun(tmp_path / "samples") is Corrupted.begun(tmp_path / "absent") is None
    for content, expected in (
        ("[", "expected a folder that electra-flax corrupt wrote"),
        ('{"depends_on": {}, "source": "x", "parts": {"a": [1]}}', "parts.a.1"),
        ('{"depends_on": {}, "source": "x", "format_version": 0}', "format_version is 0, this release reads 1"),
    ):
        manifest.write_text(content)
        with pytest.raises(UserError, match=expected):
            Corrupted.open(tmp_path / "samples", "given")


@pytest.mark.slow
def test_without_room_or_alone_it_leaves_nothing(root, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 0))
        assert "room for 0 B: take a larger disk" in refusal(capsys, corrupt(root, "full"))
    assert not (root / "full").exists()
    with Workdir(root / "full").lock():
        assert "another process is at work there" in refusal(capsys, corrupt(root, "full"))
    assert main(corrupt(root, "full", "--training.batch_size", "16")) == 0


@pytest.mark.slow
def test_killed_it_goes_on_and_other_samples_are_refused(root, capsys, caplog):
    folder, given = root / "samples", ["--data.corrupted", str(root / "samples")]
    small = "import electra_flax.data.corrupted as c\nc._PART_BYTES = 1\n"
    dying = small + "import os\nw = c.Corrupted.write\ndef d(s, p, r):\n    w(s, p, r)\n    os._exit(9)\n"
    assert end(start(corrupt(root, "samples"), dying + "c.Corrupted.write = d\n"))[0] == 9
    assert "parts are written: the same electra-flax corrupt" in refusal(capsys, pretrain(root, "other", *given))
    assert "/nowhere: no manifest.json there: expected a folder that electra-flax corrupt wrote" in refusal(
        capsys, pretrain(root, "other", "--data.corrupted", "/nowhere")
    )
    assert end(start(corrupt(root, "samples"), small))[0] == 0
    assert main(corrupt(root, "whole")) == 0
    for before, code in ((small + DIE_ONCE_SAVED, 9), (small, 0)):
        assert end(start(pretrain(root, "killed", *given), before))[0] == code
    assert main(pretrain(root, "cached", "--data.corrupted", str(root / "whole"))) == 0
    for ours, theirs in zip(*map(jax.tree.leaves, [state_at(root, run) for run in ("killed", "cached")]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    given[1] = str(root / "whole")
    for extra, expected in (
        (["--training.seed", "1"], "written with training.seed=0, this run has 1: set it to"),
        (["--objective.temperature_tau", "0.2"], "objective.temperature_tau=0.1, this run has 0.2"),
        (["--training.num_steps", "7"], "training.num_steps=6, this run has 7"),
        (["--evaluation.max_batches", "3"], "evaluation.max_batches=2, this run has 3"),
    ):
        assert expected in refusal(capsys, pretrain(root, "other", *given, *extra))
    assert "expected a folder that electra-flax corrupt wrote" in refusal(capsys, corrupt(root, "shards"))
    assert "written with training.seed=0" in refusal(capsys, corrupt(root, "whole", "--training.seed", "3"))
    # Another discriminator; and the generator lies elsewhere now, where nobody looks.
    assert main(pretrain(root, "wide", *given, "--model.hidden_size", "48", "--generator.frozen", "elsewhere")) == 0
    assert "its samples are those of generator.frozen=" in caplog.text
    run = json.loads((root / "cached/run.json").read_text())
    (root / "cached/run.json").write_text(json.dumps(run | {"samples": "0" * 64}))
    assert "it learned from other samples (digest 000000000000)" in refusal(capsys, pretrain(root, "cached", *given))
    shutil.rmtree(folder)
    assert main(["evaluate", "--workdir", str(root / "killed")]) == 0  # with the generator
    assert json.loads(capsys.readouterr().out)["generator_loss"] > 0
    assert main(["report", "--workdir", str(root / "killed"), "--out", str(root / "report.html")]) == 0
    assert "Generator loss" not in (root / "report.html").read_text()
