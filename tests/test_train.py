"""The commands end to end on the sample corpus, with real processes: resume, exports, and every refusal."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_restore
from run_tools import DIE_ONCE_SAVED, pretrain, records, refusal, start, state_at

from data_prep.cli import main as data_main
from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.data.pipeline import GlobalOrder
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.runtime import progress_bar
from electra_flax.weights import parity


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    """A folder with shards, a configuration, a finished run of six steps and its export."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("run"), dirs_exist_ok=True)


@pytest.mark.slow
def test_six_steps_are_three_and_a_new_process_and_three(run):
    for before, expected_code in ((DIE_ONCE_SAVED, 9), ("", 0)):
        process = start(pretrain(run, "resumed"), before, ELECTRA_FLAX_STATUS=str(run / "status.json"))
        error = process.communicate()[1]
        assert process.returncode == expected_code, error
    straight, resumed = state_at(run, "run", 6), state_at(run, "resumed", 6)
    for ours, theirs in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "validation"):
        expected, found = records(run, "run", split), records(run, "resumed", split)
        for step in (4, 5, 6) if split == "train" else (6,):
            assert found[step] == expected[step]
    assert (run / "resumed/DONE").exists()
    told = json.loads((run / "status.json").read_text())
    assert (told["began"], told["step"], told["of"], told["state"], told["seconds_left"]) == (3, 6, 6, "done", 0)
    assert {"loss", "tokens_per_sec"} <= told["train"].keys() and "loss" in told["validation"]


def test_batches_visit_every_example_once_an_epoch():
    order = GlobalOrder(num_examples=50, batch_size=16, seed=3)
    numbers = np.concatenate([order.batch(number) for number in range(50)])
    epochs = numbers.reshape(16, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert not (epochs[0] == epochs[1]).all()
    later = GlobalOrder(num_examples=50, batch_size=16, seed=3)
    np.testing.assert_array_equal(later.batch(37), numbers[37 * 16 : 38 * 16])
    assert (GlobalOrder(num_examples=50, batch_size=16, seed=4).batch(0) != numbers[:16]).any()
    assert sorted(GlobalOrder(num_examples=3, batch_size=9, seed=0).batch(5)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_evaluate_prints_the_recorded_metrics(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--workdir", str(run / "run")]) == 0
    printed = json.loads(capsys.readouterr().out)
    recorded = records(run, "run", "validation")[6]
    for name in ("generator_loss", "discriminator_loss", "discriminator_auc"):
        assert printed[name] == pytest.approx(recorded[name], rel=1e-6)


def test_evaluate_says_whether_a_guess_by_frequency_is_as_good(run, capsys, monkeypatch):
    assert main(["evaluate", "--workdir", str(run / "run")]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    shards, special = DataFolder.open(run / "shards"), Vocabulary.read(run / "vocab/vocab.txt").special

    def tokens(split, most):
        """Of the first examples, [CLS] and [SEP] left out."""
        examples = ShardedExamples(shards.splits[split], 32, 600)
        ids, mask, _ = examples.read(range(min(len(examples), most))).swapaxes(0, 1)
        return ids[(mask == 1) & (ids != special.cls) & (ids != special.sep)]

    counts = np.bincount(tokens("train", 10**6), minlength=600) + 0.1
    expected = float(-np.log(counts / counts.sum())[tokens("validation", 2 * 16)].mean())
    assert found["frequency_loss"] == pytest.approx(expected) and found["generator_loss"] > expected
    assert f"by token frequency alone {expected:.2f}: no better yet" in said.err
    monkeypatch.setattr("electra_flax.training.evaluate.frequency_loss", lambda *unused: 9.0)
    assert main(["evaluate", "--workdir", str(run / "run")]) == 0
    assert "9.00: the generator uses context" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(run):
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        yield run / "export"


@pytest.mark.parametrize("part", ["discriminator", "generator"])
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_exports_load_whole_and_compute_the_same(run, exported, part, framework):
    """No weight missing or unexpected, logits within 1e-4 of ours on held-out text."""
    transformers = pytest.importorskip("transformers")
    if framework == "torch":
        pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
    name = {"discriminator": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}[part]
    cls = getattr(transformers, f"Flax{name}" if framework == "flax" else name)
    tokenizer = transformers.ElectraTokenizerFast.from_pretrained(exported / part)
    text = ["새벽 시장은 도시가 아직 잠들어 있을 때 가장 먼저 깨어난다.", "봄이 왔다."]
    inputs = tokenizer(text, padding=True, truncation=True, max_length=32, return_tensors="np")
    config = load_config(run / "tiny.yaml")
    ours = parity.our_logits(config.architecture, state_at(run, "run", 6).params, part, inputs)
    if framework == "flax":
        model = cls.from_pretrained(exported / part)
        written = msgpack_restore((exported / part / "flax_model.msgpack").read_bytes())
        # from_pretrained fills what is missing and drops what it does not know: both would show here.
        assert jax.tree.structure(dict(model.params)) == jax.tree.structure(written)
        theirs = np.asarray(model(**inputs).logits)
    else:
        model, report = cls.from_pretrained(exported / part, output_loading_info=True)
        assert not any(report.values()), report
        tensors = tokenizer(text, padding=True, truncation=True, max_length=32, return_tensors="pt")
        theirs = model.eval()(**tensors).logits.detach().numpy()
    used = inputs["attention_mask"] == 1
    np.testing.assert_allclose(theirs.reshape(ours.shape)[used], ours[used], atol=1e-4, rtol=0)


def test_export_reports_parity_and_its_own_sizes(exported):
    report = json.loads((exported / "parity.json").read_text())
    assert report["discriminator"]["flax"] < 1e-4 and report["generator"]["flax"] < 1e-4
    generator = json.loads((exported / "generator/config.json").read_text())
    discriminator = json.loads((exported / "discriminator/config.json").read_text())
    assert (generator["hidden_size"], discriminator["hidden_size"]) == (16, 32)
    assert generator["embedding_size"] == discriminator["embedding_size"] == 16


@pytest.mark.slow
def test_files_hold_no_escapes_and_no_carriage_returns(run, exported, sample_corpus, monkeypatch, tmp_path):
    """Also not those of progress, which is shown here at every update."""
    monkeypatch.setattr(progress_bar, "_PLAIN_SECONDS", 0.0)
    model, shards = ["--model", str(exported)], str(run / "shards")
    source = ["--corpus", str(sample_corpus)]
    said = {}
    for name, command, arguments in (
        ("pretrain", main, pretrain(run, "in_files")),
        ("shard", data_main, ["shard", *source, "--vocab", str(run / "vocab"), "--out", str(tmp_path / "shards"),
                              "--max-seq-length", "32", "--workers", "1"]),
        ("vocab", data_main, ["vocab", *source, "--size", "600", "--unused", "10", "--out", str(tmp_path / "vocab")]),
        ("export", main, ["export", "--workdir", str(run / "run"), "--out", str(tmp_path / "exported")]),
        ("evaluate", main, ["evaluate", "--workdir", str(run / "run")]),
        ("detect", main, ["detect", *model, "새벽 시장은 도시가 아직 잠들어 있을 때"]),
        ("show", main, ["show", *model, "--data", shards]),
        ("inspect", data_main, ["inspect", shards]),
    ):  # fmt: skip
        with (tmp_path / f"{name}.txt").open("w+b") as file:
            with monkeypatch.context() as patch, io.TextIOWrapper(file, encoding="utf-8", write_through=True) as text:
                patch.setattr("sys.stdout", text)
                patch.setattr("sys.stderr", text)
                with jax.numpy_rank_promotion("allow"):
                    assert command(arguments) == 0
        said[name] = (tmp_path / f"{name}.txt").read_bytes()
    assert all(said.values())
    assert not {name for name, octets in said.items() if b"\x1b" in octets or b"\r" in octets}
    assert b"training 100%, 6 of 6 steps" in said["pretrain"] and b"writing" in said["export"]


def damaged_copy(run, name, change):
    shutil.copytree(run / "shards", run / name)
    shard = run / name / "electra-train.tfrecord-00000-of-00001"
    shard.write_bytes(change(shard.read_bytes()))
    return name


def test_bad_input_is_one_line_and_exit_1(run, capsys):
    def refused(workdir, *extra, data="shards"):
        return refusal(capsys, pretrain(run, workdir, *extra, data=data))

    assert "model.hidden_size: 32 -> 64" in refused("run", "--model.hidden_size", "64")
    assert "model.vocab_size=700, but" in refused("new", "--model.vocab_size", "700")
    assert "data.max_seq_length=16, but the shards" in refused("new", "--data.max_seq_length", "16")
    assert "did you mean training.batch_size?" in refused("new", "--training.batchsize", "8")
    assert "nearest: 8 or 16" in refused("new", "--training.batch_size", "12")
    assert "model.vocab_size=700, but" in refused("deep/er", "--model.vocab_size", "700")
    assert not (run / "new").exists() and not (run / "deep").exists(), "what is refused leaves nothing"
    (run / "empty").mkdir()
    assert "model.vocab_size=700, but" in refused("empty", "--model.vocab_size", "700")
    assert (run / "empty").exists() and not any((run / "empty").iterdir())
    assert "no such folder" in refused("new", data="nowhere")
    assert "--config nowhere.yaml" in refusal(
        capsys, ["pretrain", "--config", "nowhere.yaml", "--data", "x", "--workdir", "y"]
    )
    cut = damaged_copy(run, "cut", lambda data: data[:-9])
    assert "truncated" in refused("new", data=cut)
    middle = (run / "shards/electra-train.tfrecord-00000-of-00001").stat().st_size // 2
    flipped = damaged_copy(run, "flipped", lambda data: data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "is damaged" in refused("new", data=flipped)
    (run / "file").write_text("not a folder")
    assert "cannot be written" in refused("file/workdir")
    for out in ("run", "run/checkpoints", "run/../run/checkpoints/more", "run/damaged/x"):
        said = refusal(capsys, ["export", "--workdir", str(run / "run"), "--out", str(run / out)])
        assert f"inside the run of --workdir {run / 'run'}" in said
    assert "no such folder: give the --workdir" in refusal(capsys, ["evaluate", "--workdir", str(run / "nowhere")])
    shutil.copytree(run / "shards", run / "other_vocab")
    (run / "other_vocab/vocab.txt").write_text(
        "\n".join(reversed(Vocabulary.read(run / "shards/vocab.txt").tokens)), encoding="utf-8"
    )
    assert "is not the vocabulary of these shards" in refused("new", data="other_vocab")


@pytest.mark.slow
def test_shards_of_the_original_train(run, golden, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((golden / "vocab_koelectra_v1.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": false}')
    fields = {
        "model.vocab_size": "32200", "model.max_position_embeddings": "128", "data.max_seq_length": "128",
        "training.num_steps": "2", "data.vocab_file": str(tmp_path / "vocab.txt"),
    }  # fmt: skip
    overrides = [part for name, value in fields.items() for part in (f"--{name}", value)]
    arguments = ["--data", str(golden / "tfrecords/seeded_L128_p1"), "--workdir", str(tmp_path / "work")]
    assert main(["pretrain", "--config", str(run / "tiny.yaml"), *arguments, *overrides]) == 0
    assert (tmp_path / "work/DONE").exists()


def test_usage_errors_exit_2():
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--data", "x"])
    assert stop.value.code == 2


def test_damage_under_way_stops_the_run_with_exit_3(run, capsys, monkeypatch):
    """The shards are sound when they are verified and change afterwards."""
    folder = damaged_copy(run, "late", lambda data: data)
    shard = run / folder / "electra-train.tfrecord-00000-of-00001"

    def verify_then_damage(shards, memory):
        sound = shard.read_bytes()
        shard.write_bytes(bytes(octet ^ 1 for octet in sound))

    monkeypatch.setattr("electra_flax.training.pretrain.verify_shards", verify_then_damage)
    capsys.readouterr()
    assert main(pretrain(run, "late_run", data=folder)) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("electra-flax: error:") and "is damaged" in error and "run the same command" in error


@pytest.mark.slow
def test_what_nobody_foresaw_ends_with_70_and_its_traceback_in_the_workdir(run, capsys, monkeypatch):
    def halted(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: the accelerator has halted\nand more")

    monkeypatch.setattr("electra_flax.training.pretrain.compile_step", halted)
    capsys.readouterr()
    assert main(pretrain(run, "halted")) == 70
    line = capsys.readouterr().err.splitlines()[-1]
    kept = run / "halted/error-0.txt"
    assert (
        "the accelerator has halted" in line and f"traceback: {kept}" in line and "try the same command again" in line
    )
    assert "in halted" in kept.read_text()
    monkeypatch.undo()
    assert main(pretrain(run, "halted")) == 0


def test_chips_without_metadata_are_trained_on_by_one_host_alone(run, monkeypatch):
    """As on Kaggle and Colab; the run is done already, so that this takes no time."""
    monkeypatch.setattr("electra_flax.runtime.processes._on_tpu_vm", lambda: True)
    monkeypatch.setenv("TPU_PROCESS_ADDRESSES", "local")
    assert main(pretrain(run, "run")) == 0
    monkeypatch.delenv("TPU_PROCESS_ADDRESSES")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert main(pretrain(run, "run")) == 0
