"""Every door in and out: what comes back is what went in, and what is no ELECTRA is refused in one line."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from golden_tools import Draws, config_for, losses_with_given_draws, read_json
from run_tools import refusal
from test_golden import FORWARD_CASES, RecordedTraining
from weights_tools import SHARING, assert_equal, export, export_both, random_weights, write_original, write_vocabulary

from electra_flax.commands.cli import main
from electra_flax.config.schema import MeshConfig
from electra_flax.model.sharding import make_mesh
from electra_flax.training.optimizers.adamw import AdamState
from electra_flax.training.state import TrainState
from electra_flax.trees import flat, nested
from electra_flax.weights import names
from electra_flax.weights.delta import fold
from electra_flax.weights.export import export_to_tf1, model_parts
from electra_flax.weights.sources import find_weights
from electra_flax.weights.start import Start

CHECKPOINTS = ("A_small_gen0.25", "B_koelectra_small_gen1.0")


# ------------------------------------------------------------------------------------------------------ the original


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_original_come_whole(golden, name):
    """Weights, moments and step against what TensorFlow itself read of them; forward pass against the original's."""
    weights = find_weights(f"tf1:{golden}/tf1_ckpt/{name}/model.ckpt-200.index")
    expected = np.load(golden / FORWARD_CASES[name])
    assert {names.to_tf1(each) for each in weights.shapes} | {"global_step"} == set(expected.files) | {"global_step"}
    for each in weights.shapes:
        np.testing.assert_array_equal(weights.read(each), expected[names.to_tf1(each)])
    assert weights.step == 200 and not weights.unused and not weights.remarks

    case = np.load(golden / f"forward/{name}.npz")
    config = config_for(weights.architecture)
    total, outcome = losses_with_given_draws(config, weights.to_params(), Draws.read(case))
    np.testing.assert_allclose(outcome.generator_BMV, case["mlm_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(outcome.discriminator_BT, case["disc_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(total, case["total_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_original_go_back_as_they_were(golden, tmp_path, name):
    place = golden / f"tf1_ckpt/{name}"
    rows = find_weights(f"tf1:{place}/model.ckpt-200").architecture.model.vocab_size
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", rows).path
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": false}')
    arguments = ["--from", f"tf1:{place}/model.ckpt-200", "--vocab", str(vocabulary), "--out", str(tmp_path / "out")]
    assert main(["export", *arguments, "--to", "tf1"]) == 0
    before, after = (find_weights(f"tf1:{folder}/model.ckpt-200") for folder in (place, tmp_path / "out"))
    assert_equal(before, after)
    for each in before.shapes:
        for moment in "mv":
            np.testing.assert_array_equal(before.read_moment(each, moment), after.read_moment(each, moment))
    assert (before.step, before.architecture) == (after.step, after.architecture)
    theirs, ours = (read_json(folder / "hparams.json") for folder in (place, tmp_path / "out"))
    assert {key: ours[key] for key in theirs if key in ours} == {key: theirs[key] for key in theirs if key in ours}


@pytest.mark.slow
def test_training_goes_on_where_the_original_stopped(golden, tmp_path):
    """Ten steps from its first weights, out as its checkpoint, in again, ten more: where it was after twenty."""
    recorded = RecordedTraining(golden)
    first = recorded.weights("init")
    write_original(tmp_path / "begin/model.ckpt-0", first, recorded.hparams)
    vocabulary = write_vocabulary(tmp_path / "begin/vocab.txt", recorded.config.model.vocab_size)
    config = dataclasses.replace(recorded.config, training=dataclasses.replace(recorded.config.training, batch_size=8))

    def resume(source):
        start = Start(source, resumes=True)
        start.check(config, vocabulary)
        # What resuming must replace is filled with what would be wrong.
        params = nested({name: np.full(shape, 9.0, np.float32) for name, shape in find_weights(source).shapes.items()})
        params = jax.device_put(params)
        fresh = TrainState(jax.numpy.zeros((), "int32"), params, recorded.optimizer.init(params))
        return jax.device_get(start.apply(config, vocabulary, make_mesh(MeshConfig()), fresh))

    state = resume(f"tf1:{tmp_path}/begin/model.ckpt-0")
    assert int(state.step) == 0
    params, opt_state = recorded.train(state.params, state.opt_state, range(10))

    adam = next(part for part in opt_state if isinstance(part, AdamState))
    parts = {"": flat(params), "m": flat(adam.m), "v": flat(adam.v)}
    reached = dataclasses.replace(
        find_weights(f"tf1:{tmp_path}/begin/model.ckpt-0"), step=10,
        read=lambda name: np.asarray(parts[""][name]), read_moment=lambda name, moment: np.asarray(parts[moment][name]),
    )  # fmt: skip
    prefix = export_to_tf1(reached, tmp_path / "half")
    state = resume(f"tf1:{prefix}")
    assert int(state.step) == 10
    recorded.assert_is_its_end(*recorded.train(state.params, state.opt_state, range(10, 20)))


# ------------------------------------------------------------------------------------------------------ round trips


def published(weights):
    """All but two towers, which Hugging Face has no model for."""
    ours = {name for part in model_parts(weights.architecture, weights.shapes) for name in part.ours.values()}
    return dataclasses.replace(weights, shapes={name: weights.shapes[name] for name in weights.shapes if name in ours})


@pytest.mark.slow
@pytest.mark.parametrize("sharing", SHARING)
def test_nothing_is_lost_on_the_way_and_back(tmp_path, sharing):
    """Ours -> Hugging Face -> ours -> Hugging Face and ours -> TensorFlow 1 -> ours, bit by bit."""
    weights = fold(random_weights(tmp_path, sharing))
    out = export(weights, tmp_path / "out")
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    back = find_weights("hf:" + (str(out) if len(folders) == 2 else str(folders[0])))
    assert_equal(published(weights), back)
    assert back.architecture.logit == weights.architecture.logit
    again = export(dataclasses.replace(back, run=None), tmp_path / "again")
    for file in sorted(out.rglob("*")):
        if file.name in ("model.safetensors", "flax_model.msgpack", "config.json", "tokenizer.json", "vocab.txt"):
            assert file.read_bytes() == (again / file.relative_to(out)).read_bytes(), file

    prefix = export_to_tf1(weights, tmp_path / "original")
    original = find_weights(f"tf1:{prefix}")
    assert_equal(weights, original)
    for name in weights.shapes:
        for moment in "mv" if weights.optimizer else "":  # a folded model has none
            np.testing.assert_array_equal(original.read_moment(name, moment), weights.read_moment(name, moment))
    assert (original.step, original.casing) == (7, weights.casing)
    assert original.architecture == weights.architecture


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return export_both(tmp_path_factory.mktemp("there"))


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraForMaskedLM"])
@pytest.mark.parametrize("framework", ["torch", "flax"])
@jax.numpy_rank_promotion("allow")  # transformers' modules rely on it
def test_what_transformers_saves_comes_back_as_it_was(there, tmp_path, name, framework):
    """Theirs -> ours -> theirs, bit by bit, whatever file it lies in and in whatever order."""
    transformers = pytest.importorskip("transformers")
    part = {"ElectraForPreTraining": "discriminator", "ElectraForMaskedLM": "generator"}[name]
    config = transformers.ElectraConfig.from_pretrained(there / f"export/{part}")
    if framework == "torch":
        torch = pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        theirs = cls(config)
        theirs.save_pretrained(tmp_path / "theirs")
    else:
        cls = getattr(transformers, f"Flax{name}")
        theirs = cls(config, seed=0)
        theirs.save_pretrained(tmp_path / "theirs")
    for file in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(there / f"export/{part}/{file}", tmp_path / "theirs")
    back = cls.from_pretrained(export(find_weights(f"hf:{tmp_path}/theirs"), tmp_path / "ours") / part)
    if framework == "torch":
        before, after = theirs.state_dict(), back.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    else:
        jax.tree.map(np.testing.assert_array_equal, theirs.params, back.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(there, tmp_path, dtype):
    source = ["--from", f"hf:{there}/export", "--out", str(tmp_path / "half")]
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", *source, "--dtype", dtype]) == 0
    whole, half = find_weights(f"hf:{there}/export"), find_weights(f"hf:{tmp_path}/half")
    for name in whole.shapes:
        np.testing.assert_array_equal(half.read(name), whole.read(name).astype(jax.numpy.dtype(dtype)).astype("f4"))
    assert read_json(tmp_path / "half/generator/config.json")["dtype"] == dtype


def test_a_checkpoint_without_hparams_says_what_it_assumed(there, tmp_path):
    shutil.copytree(there / "original", tmp_path / "original")
    (tmp_path / "original/hparams.json").unlink()
    weights = find_weights(f"tf1:{tmp_path}/original/model.ckpt-7")
    assert weights.remarks == ("no hparams.json beside it: attention heads taken to be hidden size / 64",)
    assert weights.architecture.model.num_attention_heads == 1 and weights.casing is None


# ------------------------------------------------------------------------------------------------------ refusals


def changed(there, tmp_path, path, change):
    """A copy of `there` in which one file is changed, None removes it; returns the copy."""
    copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
    shutil.copytree(there, copy)
    content = change((copy / path).read_bytes()) if change else None
    (copy / path).unlink()
    if content is not None:
        (copy / path).write_bytes(content)
    return copy


def with_setting(**settings):
    return lambda content: json.dumps(json.loads(content) | settings).encode()


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("discriminator/config.json", with_setting(model_type="bert"), "a model of type bert, not electra"),
        ("discriminator/config.json", with_setting(hidden_size=48), "hidden_size=48, but its weights have 32"),
        ("generator/config.json", with_setting(num_hidden_layers=12), "num_hidden_layers=12, but its weights have 1"),
        ("discriminator/config.json", with_setting(num_attention_heads=5), "num_attention_heads"),
        ("discriminator/config.json", with_setting(hidden_act="relu"), "hidden_act=relu: only gelu"),
        ("discriminator/config.json", lambda content: content[:50], "config.json: not JSON"),
        ("discriminator/config.json", None, "config.json: missing"),
        ("discriminator/model.safetensors", lambda content: content[:-7], "cut off or damaged"),
        ("discriminator/model.safetensors", lambda content: content[:100], "cut off or damaged"),
        ("discriminator/model.safetensors", lambda content: b"", "cut off or damaged"),
        ("discriminator/vocab.txt", None, "no vocab.txt, which names"),
        ("discriminator/vocab.txt", lambda content: content + b"more\n", "different vocabularies"),
    ],
)
def test_what_is_no_whole_electra_is_refused(there, tmp_path, capsys, path, change, expected):
    copy = changed(there / "export", tmp_path, path, change)
    error = refusal(capsys, ["export", "--from", f"hf:{copy}", "--out", str(tmp_path / "out")])
    assert expected in error and not (tmp_path / "out").exists()


def test_the_wrong_model_in_the_wrong_place_is_refused(there, tmp_path, capsys):
    discriminator, generator = there / "export/discriminator", there / "export/generator"
    pickle = changed(generator, tmp_path, "model.safetensors", None)
    (pickle / "flax_model.msgpack").rename(pickle / "pytorch_model.bin")
    encoder = tmp_path / "encoder"
    shutil.copytree(generator, encoder)
    head = find_weights(f"hf:{generator}")
    bert = {name.replace("electra/", "bert/"): head.read(name) for name in head.shapes if name.startswith("electra/")}
    write_original(tmp_path / "bert/model.ckpt-5", bert, {})
    half = {names.to_tf1(name): head.read(name) for name in head.shapes if "word_embeddings" not in name}
    write_original(tmp_path / "half/model.ckpt-5", half, {})
    more = write_vocabulary(tmp_path / "more/vocab.txt", 301).path
    (tmp_path / "more/tokenizer_config.json").write_text('{"do_lower_case": false}')
    for source, expected in (
        (f"hf:{generator},{discriminator}", "given as the discriminator, but it has the head of a generator (hidden"),
        (f"hf:{discriminator},{discriminator}", "given as the generator, but it has the head of a discriminator"),
        (f"hf:{discriminator},{generator},{generator}", "3 folders, expected one or two"),
        (f"hf:{pickle}", "pytorch_model.bin"),
        (f"hf:{tmp_path}", "neither model.safetensors nor flax_model.msgpack"),
        ("hf:nowhere", "no such folder, nor OWNER/NAME"),
        (f"tf1:{tmp_path}/bert/model.ckpt-5", "no variable of it is ELECTRA's; the first is bert/"),
        (f"tf1:{tmp_path}/half/model.ckpt-5", "lacks electra/embeddings/word_embeddings: not a whole ELECTRA"),
        (f"tf1:{tmp_path}/none/model.ckpt-5", "cannot be read (No such file or directory)"),
        (f"orbax:{tmp_path}", "not the workdir of a run"),
        ("pt:x", "expected hf:DISC[,GEN], tf1:PREFIX or orbax:DIR"),
    ):
        assert expected in refusal(capsys, ["export", "--from", source, "--out", str(tmp_path / "out")]), source
    original = f"tf1:{there}/original/model.ckpt-7"
    for extra, expected in (
        (["--vocab", str(more)], "301 tokens, but the embeddings of"),
        (["--vocab", str(tmp_path / "no.txt")], "no.txt: no such vocabulary"),
        (["--step", "3"], "only a run (orbax:DIR) has several steps"),
        (["--to", "tf1", "--dtype", "float16"], "--to tf1 writes float32 only"),
        (["--to", "tf1", "--push", "a/b"], "the hub takes the format hf"),
        (["--private"], "--private needs --push"),
        (["--push", "name"], "expected OWNER/NAME"),
    ):
        assert expected in refusal(capsys, ["export", "--from", original, "--out", str(tmp_path / "out"), *extra])
