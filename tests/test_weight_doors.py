"""Odd and hostile model folders at every door that weights enter by: they work, or one line says what is wrong."""

import dataclasses
import json
import os
import shutil

import jax
import msgpack
import numpy as np
import pytest
from finetune_tools import QUICK, write_sentiment
from golden_tools import config_for
from run_tools import refusal
from safetensors.numpy import load_file, save_file
from weights_tools import assert_equal, export_both

from electra_flax.commands.cli import main
from electra_flax.config.schema import MeshConfig
from electra_flax.data.example import encode_example
from electra_flax.data.manifest import Manifest, ShardInfo
from electra_flax.data.tfrecord import ShardWriter, frame
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.finetuning.run import find_encoder
from electra_flax.finetuning.scoreboard import Protocol, scoreboard
from electra_flax.model.sharding import make_mesh
from electra_flax.runtime.interruption import Interruption
from electra_flax.storage.workdir import Workdir
from electra_flax.training.state import TrainState
from electra_flax.trees import nested
from electra_flax.weights.export import export_to_hugging_face
from electra_flax.weights.model_card import Publication
from electra_flax.weights.sources import find_weights
from electra_flax.weights.start import Start

PARTS = ("discriminator", "generator")
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return export_both(tmp_path_factory.mktemp("there"))


# ------------------------------------------------------------------------------------------------------ the models


def tensors(change, metadata=True, parts=PARTS):
    """A variant of model.safetensors: the other form would hide it."""

    def apply(folder):
        for part in parts:
            path = folder / part / "model.safetensors"
            (folder / part / "flax_model.msgpack").unlink()
            found = change({name: value.copy() for name, value in load_file(path).items()}, part)
            save_file(found, path, metadata={"format": "pt"} if metadata else None)

    return apply


def with_value(name, value):
    def change(found, part):
        if part == "discriminator":
            key = next(key for key in found if key.endswith(name))
            found[key].reshape(-1)[0] = value
        return found

    return tensors(change)


def sharded(folder):
    tensors(lambda found, part: found)(folder)
    for part in PARTS:
        path = folder / part / "model.safetensors"
        found = load_file(path)
        path.unlink()
        table = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(found))}
        for file in set(table.values()):
            save_file({name: found[name] for name in found if table[name] == file}, folder / part / file)
        (folder / part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def without_a_shard(folder):
    sharded(folder)
    (folder / "discriminator/model-00002-of-00002.safetensors").unlink()


def buffers(found, part):
    prefix = "electra.embeddings." if part == "discriminator" else "module.electra.embeddings."
    return {**found, f"{prefix}position_ids": np.arange(64)[None], f"{prefix}token_type_ids": np.zeros((1, 64), int)}


def encoder(found, part):
    return {name.removeprefix("electra."): value for name, value in found.items() if name.startswith("electra.")}


def classifier(found, part):
    kept = {name: value for name, value in found.items() if name.startswith("electra.")}
    return {**kept, "classifier.dense.weight": np.zeros((32, 32), "f4"), "classifier.dense.bias": np.zeros(32, "f4")}


def packed(change):
    """A variant of flax_model.msgpack, with safetensors gone."""

    def apply(folder):
        for part in PARTS:
            (folder / part / "model.safetensors").unlink()
        path = folder / "discriminator/flax_model.msgpack"
        content = path.read_bytes()
        if callable(change):
            path.write_bytes(change(content))
            return
        tree = msgpack.unpackb(content)
        tree["electra"]["embeddings"]["word_embeddings"]["embedding"] = change
        path.write_bytes(msgpack.packb(tree))

    return apply


def array(kind, shape=(2,)):
    return msgpack.ExtType(1, msgpack.packb((shape, kind, b"\0" * 8)))


def setting(**values):
    """Changed fields of config.json; a field of None's type `...` is taken away."""

    def apply(folder):
        path = folder / "discriminator/config.json"
        found = json.loads(path.read_bytes()) | values
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))

    return apply


def written(name, content):
    def apply(folder):
        path = folder / "discriminator" / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return apply


def vocabulary(change):
    def apply(folder):
        path = folder / "generator/vocab.txt"
        path.write_bytes(change(path.read_bytes()))

    return apply


def fifo(name):
    def apply(folder):
        (folder / "discriminator" / name).unlink()
        os.mkfifo(folder / "discriminator" / name)

    return apply


def folder_at(name):
    def apply(folder):
        (folder / "discriminator" / name).unlink()
        (folder / "discriminator" / name).mkdir()

    return apply


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NOT_FINITE = "query/kernel holds 1 of 1,024 values that are not finite"
HEADLESS = "has neither head of ELECTRA's pretraining"
DIGITS = b"9" * 5000
# {model: (what is done to an export, what each door says)}; "" says nothing, and a door that is not named says what
# "all" does.
MODELS = {
    "plain": (tensors(lambda found, part: found), {"all": ""}),
    "no metadata": (tensors(lambda found, part: found, metadata=False), {"all": ""}),
    "buffers": (tensors(buffers), {"all": ""}),
    "sharded": (sharded, {"all": ""}),
    "a shard is missing": (without_a_shard, {"all": "model-00002-of-00002.safetensors: missing"}),
    "NaN": (with_value(QUERY, np.nan), {"all": f"{NOT_FINITE}, the first nan"}),
    "infinity": (with_value(QUERY, np.inf), {"all": f"{NOT_FINITE}, the first inf"}),
    "NaN in the head": (
        with_value("discriminator_predictions.dense.bias", np.nan),
        {"all": "dense/bias holds 1 of 32 values that are not finite", "finetune": ""},  # its head is fresh
    ),
    "big": (
        with_value("dense_prediction.weight", 1e6),
        {"all": "", "float16": "dense_prediction/kernel holds 1e+06, beyond what float16 can hold"},
    ),
    "whole numbers": (
        tensors(lambda found, part: {name: value.astype(np.int8) for name, value in found.items()}),
        {"all": "is of type I8, expected floating-point numbers"},
    ),
    "an adapter's tensors": (
        tensors(lambda found, part: {**found, "electra.encoder.layer.0.adapter.weight": np.zeros((4, 4), "f4")}),
        {"all": ""},
    ),
    "LFS pointer": (written("model.safetensors", POINTER), {"all": "a Git LFS pointer, not the file itself"}),
    "LFS pointer as vocabulary": (written("vocab.txt", POINTER), {"all": "a Git LFS pointer"}),
    "encoder": (tensors(encoder), {"all": "neither head", "finetune": ""}),
    "classifier": (tensors(classifier), {"all": "neither head", "finetune": ""}),
    "no model_type": (setting(model_type=...), {"all": "config.json: lacks model_type"}),
    "size is a string": (setting(hidden_size="32"), {"all": "config.json: hidden_size='32': expected"}),
    "size is null": (setting(embedding_size=None), {"all": "config.json: embedding_size=None: expected"}),
    "epsilon is 0": (setting(layer_norm_eps=0.0), {"all": "layer_norm_eps=0.0: expected more than 0 and at most 0.1"}),
    "dropout is a list": (setting(hidden_dropout_prob=[0.1]), {"all": "config.json: hidden_dropout_prob=[0.1]"}),
    "config is a list": (written("config.json", b"[]"), {"all": "config.json: the whole=[]: expected"}),
    "config is deep": (written("config.json", b"[" * 100_000), {"all": "config.json: not JSON"}),
    "config is UTF-16": (written("config.json", "{}".encode("utf-16-be")), {"all": "config.json"}),
    "config has long numbers": (written("config.json", b'{"vocab_size": %b}' % DIGITS), {"all": "config.json"}),
    "index is no index": (
        lambda folder: (sharded(folder), written("model.safetensors.index.json", b'{"weight_map": [1]}')(folder)),
        {"all": 'model.safetensors.index.json: lacks "weight_map"'},
    ),
    "generator's vocabulary: CRLF": (vocabulary(lambda found: found.replace(b"\n", b"\r\n")), {"all": ""}),
    "generator's vocabulary: no last line end": (vocabulary(lambda found: found[:-1]), {"all": ""}),
    "msgpack alone": (packed(lambda found: found), {"all": ""}),
    "msgpack cut off": (packed(lambda found: found[:-9]), {"all": "flax_model.msgpack: cut off or damaged"}),
    "msgpack is no tree": (packed(lambda found: msgpack.packb(3)), {"all": "holds no tree of tensors"}),
    "msgpack: a leaf is text": (packed("x"), {"all": "word_embeddings/embedding is of type str, expected an array"}),
    "msgpack: unknown type": (packed(array("object")), {"all": "word_embeddings/embedding is of type object"}),
    "msgpack: another shape": (packed(array("float32", (3, 9))), {"all": "word_embeddings/embedding is damaged"}),
    "msgpack: no chunks": (
        packed({"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"1": array("float32")}}),
        {"all": "word_embeddings/embedding lacks some of its chunks"},
    ),
    "vocab.txt is a folder": (folder_at("vocab.txt"), {"all": "vocab.txt: "}),
    "config.json is a FIFO": (fifo("config.json"), {"all": "config.json: no regular file"}),
    "model.safetensors is a FIFO": (fifo("model.safetensors"), {"all": "model.safetensors: no regular file"}),
    "vocab.txt is a FIFO": (fifo("vocab.txt"), {"all": "vocab.txt: no regular file"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(there, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, (change, _) in MODELS.items():
        shutil.copytree(there / "export", root / name)
        change(root / name)
    write_shards(root / "shards", Vocabulary.read(there / "export/discriminator/vocab.txt"))
    return root


def write_shards(folder, vocabulary):
    """One held-out example of the vocabulary's letters."""
    folder.mkdir()
    writer = ShardWriter(folder / "a")
    writer.write(frame(encode_example([2, *range(5, 12), 3], 9, 16)))
    writer.close()
    splits = {"train": [], "validation": [ShardInfo("a", 1, 9, (folder / "a").stat().st_size)]}
    sizes = (16, vocabulary.sha256, len(vocabulary.tokens))
    Manifest(*sizes, False, False, "carry", 0, 0.0, 0, [], splits).write(folder)


# ------------------------------------------------------------------------------------------------------- the doors


def is_quiet(capsys, command):
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        assert main(command) == 0, capsys.readouterr().err


def command_door(*arguments):
    def door(capsys, model, out, expected):
        command = [part.format(model=model, out=out) for part in arguments]
        if expected:
            assert expected in refusal(capsys, command)
            assert not out.exists(), "something of a refused export stayed"
        else:
            is_quiet(capsys, command)

    return door


def function_door(action):
    """The function that a command calls first with weights; what it raises the command prints."""

    def door(capsys, model, out, expected):
        if expected:
            with pytest.raises(ValueError, match=".") as caught:
                action(model)
            assert expected in str(caught.value) and "\n" not in str(caught.value)
        else:
            action(model)

    return door


def begin(model):
    """pretrain --init-from."""
    source = Start(f"hf:{model}")
    weights = find_weights(source.source)
    config = config_for(weights.architecture)
    source.check(config, weights.vocabulary)
    fresh = jax.device_put(nested({name: np.zeros(shape, "f4") for name, shape in weights.shapes.items()}))
    source.apply(config, weights.vocabulary, make_mesh(MeshConfig()), TrainState(0, fresh, ()))


def encode(model):
    """finetune and scoreboard."""
    weights = find_encoder(str(model))
    for name in weights.shapes:
        if name.startswith("electra/"):
            weights.read(name)


DOORS = {
    "export": command_door("export", "--from", "hf:{model}", "--to", "tf1", "--out", "{out}"),
    "float16": command_door("export", "--from", "hf:{model}", "--dtype", "float16", "--out", "{out}"),
    "verify": command_door("verify", "--model", "{model}"),
    "detect": command_door("detect", "--model", "{model}", "짧은 문장"),
    "show": command_door("show", "--model", "{model}", "--data", "{model.parent}/shards"),
    "init": function_door(begin),
    "finetune": function_door(encode),
}
CELLS = [
    (name, door, said.get(door, said["all"]))
    for name, (_, said) in MODELS.items()
    for door in DOORS
    # An export that works is compared with transformers, which takes a second: of one form.
    if door != "float16" or said.get(door, said["all"]) or name == "sharded"
    if (name, door) != ("big", "verify")  # a logit of a million has no four digits behind the point
]


def cells():
    """Each model at one door, in turn, so that each door has several; at the others it is slow."""
    for cell in CELLS:
        is_fast = list(MODELS).index(cell[0]) % len(DOORS) == list(DOORS).index(cell[1])
        yield pytest.param(*cell, id=f"{cell[0]}-{cell[1]}", marks=[] if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("name", "door", "expected"), [*cells()])
def test_a_model_at_a_door(models, tmp_path, capsys, name, door, expected):
    DOORS[door](capsys, models / name, tmp_path / "out", expected)


def test_what_enters_is_what_was_learned(there, models):
    """Buffers and shards change nothing, and no tensor but ELECTRA's goes on."""
    expected = find_weights(f"hf:{there}/export")
    for name in ("plain", "no metadata", "buffers", "sharded", "an adapter's tensors", "msgpack alone"):
        assert_equal(expected, find_weights(f"hf:{models / name}"))


@pytest.mark.parametrize("part", PARTS)
def test_an_export_may_hold_one_part(there, tmp_path, capsys, part):
    """Of masked-language modelling there is no discriminator, of uniform replacements no generator."""
    shutil.copytree(there / "export" / part, tmp_path / part)
    assert find_weights(f"hf:{tmp_path}").architecture.parts == [part]
    command, other = ("fill", "generator") if part == "discriminator" else ("detect", "discriminator")
    error = refusal(capsys, [command, "--model", str(tmp_path), "한국어 [MASK]"])
    assert f"a {part}; expected a {other}" in error
    of_a_run = dataclasses.replace(find_weights(f"hf:{tmp_path}"), run=Workdir(tmp_path))
    (tmp_path / "out" / other).mkdir(parents=True)
    with pytest.raises(UserError, match=f"already has a {other}, and this run has none"):
        export_to_hugging_face(of_a_run, tmp_path / "out", "float32", Publication())
    assert not (tmp_path / "out" / part).exists()


@pytest.mark.slow
def test_scoreboard_and_finetune_take_what_has_an_encoder(models, tmp_path, caplog):
    caplog.set_level("INFO", "electra_flax")
    data, out = write_sentiment(tmp_path / "nsmc", rows=8), str(tmp_path / "out")
    table = scoreboard(
        [str(models / name) for name in ("buffers", "classifier")], [f"nsmc={data}"], [], out,
        Protocol("", [*QUICK, "--epochs", "1", "--batch_size", "8"], (0,), True, False), Interruption(None),
    )  # fmt: skip
    assert "buffers" in table and "classifier" in table
    assert "an encoder without a discriminator head; left out: classifier/dense/bias" in caplog.text


def test_show_tells_what_does_not_belong_together(there, models, tmp_path, capsys):
    show = ["show", "--data", str(models / "shards"), "--model"]
    assert "a discriminator alone: expected the folder with both" in refusal(
        capsys, [*show, str(models / "plain/discriminator")]
    )
    write_shards(tmp_path / "shards", Vocabulary.of(tmp_path, ["a"]))
    show[2] = str(tmp_path / "shards")
    assert "shards of another vocabulary than the model's" in refusal(capsys, [*show, str(models / "plain")])
