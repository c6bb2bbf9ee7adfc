"""Where a run begins: every tensor accounted for, nothing random that was not asked for."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from golden_tools import config_for, init_params
from run_tools import pretrain, refusal, state_at
from safetensors.numpy import load_file, save_file
from weights_tools import export_both

from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.config.schema import MeshConfig
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.model.sharding import make_mesh
from electra_flax.training.state import TrainState
from electra_flax.trees import flat
from electra_flax.weights.sources import find_weights
from electra_flax.weights.start import Start

WORDS = "electra/embeddings/word_embeddings/embedding"
POSITIONS = "electra/embeddings/position_embeddings/embedding"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return export_both(tmp_path_factory.mktemp("there"))


def begin(start, config, vocabulary, caplog):
    """{our name: value} of a new run, the names of what stayed as it was drawn, and the audit."""
    caplog.set_level("INFO")
    caplog.clear()
    start.check(config, vocabulary)
    params = jax.tree.map(lambda leaf: leaf + 3.0, init_params(config.architecture))
    state = TrainState(jax.numpy.zeros((), "int32"), params, ())
    found = flat(jax.device_get(start.apply(config, vocabulary, make_mesh(MeshConfig()), state).params))
    drawn = [name for name, value in flat(params).items() if np.array_equal(value, found[name])]
    return found, drawn, caplog.text


def test_both_models_come_whole(there, caplog):
    weights = find_weights(f"hf:{there}/export")
    found, drawn, audit = begin(Start(weights.source), config_for(weights.architecture), weights.vocabulary, caplog)
    assert not drawn
    for name, value in found.items():
        np.testing.assert_array_equal(value, weights.read(name))
    count = sum(value.size for value in found.values())
    assert f"{len(found)} tensors ({count:,} parameters) unchanged" in audit and "not used: nothing" in audit


def test_what_is_not_used_is_named(there, tmp_path, caplog):
    shutil.copytree(there / "export", tmp_path / "export")
    path = tmp_path / "export/discriminator/model.safetensors"
    save_file(load_file(path) | {"classifier.weight": np.ones((2, 32), np.float32)}, path)
    weights = find_weights(f"hf:{tmp_path}/export")
    _, drawn, audit = begin(Start(weights.source), config_for(weights.architecture), weights.vocabulary, caplog)
    assert not drawn and "discriminator: classifier/kernel" in audit.split("not used: ")[1]


def test_one_transformer_for_both_is_no_two():
    config = load_config("demo_continue", ["--generator.untied_generator", "true"])
    vocabulary = find_weights("hf:tiny-ko").vocabulary
    with pytest.raises(UserError, match=r"one transformer is both of its models, .* add --warm-start-generator"):
        Start("tiny-ko").check(config, vocabulary)


def test_a_missing_generator_is_cut_out_of_the_discriminator_on_request(there, caplog):
    alone = f"hf:{there}/export/discriminator"
    config = config_for(find_weights(f"hf:{there}/export").architecture)
    vocabulary = find_weights(alone).vocabulary
    with pytest.raises(UserError, match=r"has no generator .* --warm-start-generator"):
        Start(alone).check(config, vocabulary)

    found, drawn, audit = begin(Start(alone, warm_start_generator=True), config, vocabulary, caplog)
    assert {name.split("/")[0] for name in drawn} == {"generator_predictions", "generator_lm_head"}
    assert all(name in audit for name in drawn) and "cut out of the discriminator" in audit
    for name, value in found.items():
        if not name.startswith("generator/"):
            continue
        source = found[name.replace("generator/", "electra/", 1)]
        np.testing.assert_array_equal(value, source[tuple(map(slice, value.shape))])


def test_new_tokens_are_the_mean_of_their_pieces(there, tmp_path, caplog):
    """Appended, put in the place of a spare line, or moved: rows follow their tokens."""
    weights = find_weights(f"hf:{there}/export")
    tokens = list(weights.vocabulary.tokens)
    tokens[tokens.index("[unused0]")] = "한국"
    tokens = [*tokens, "##문장", "brown"]
    i, j = tokens.index("T"), tokens.index("짧")
    tokens[i], tokens[j] = tokens[j], tokens[i]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    vocabulary = Vocabulary.read(tmp_path / "vocab.txt")
    sizes = dataclasses.replace(weights.architecture.model, vocab_size=len(tokens))
    config = dataclasses.replace(config_for(weights.architecture), model=sizes)
    found, drawn, audit = begin(Start(weights.source), config, vocabulary, caplog)
    assert not drawn and "embeddings of new tokens are the mean of their pieces" in audit
    for name in (WORDS, "generator_lm_head/bias"):
        before = dict(zip(weights.vocabulary.tokens, weights.read(name), strict=True))
        after = dict(zip(tokens, found[name], strict=True))
        for token in before.keys() & after.keys():
            np.testing.assert_array_equal(after[token], before[token])
        for token, pieces in (
            ("한국", ["한", "##국"]), ("##문장", ["##문", "##장"]), ("brown", ["b", "##r", "##o", "##w", "##n"])
        ):  # fmt: skip
            expected = np.mean([before[piece] for piece in pieces if piece in before], axis=0)
            np.testing.assert_allclose(after[token], expected, rtol=1e-6)


def test_positions_are_made_longer_on_request_only(there, caplog):
    weights = find_weights(f"hf:{there}/export")
    table = weights.read(POSITIONS)

    def positions(number, stretch=""):
        sizes = dataclasses.replace(weights.architecture.model, max_position_embeddings=number)
        config = dataclasses.replace(config_for(weights.architecture), model=sizes)
        found, _, audit = begin(Start(weights.source, False, stretch), config, weights.vocabulary, caplog)
        return found[POSITIONS], audit

    with pytest.raises(UserError, match="has 64 positions, model.max_position_embeddings=96"):
        positions(96)
    longer, audit = positions(127, "interpolate")
    assert "64 positions interpolated to 127" in audit
    np.testing.assert_allclose(longer[::2], table, atol=1e-6)
    np.testing.assert_allclose(longer[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)
    longer, audit = positions(150, "tile")
    np.testing.assert_array_equal(longer, np.concatenate([table, table, table[:22]]))
    shorter, audit = positions(32)
    assert "the first 32 of 64 positions" in audit
    np.testing.assert_array_equal(shorter, table[:32])


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    """A run of six steps, and its step 3 as a checkpoint of the original."""
    root = shutil.copytree(whole, tmp_path_factory.mktemp("run"), dirs_exist_ok=True)
    arguments = ["--workdir", str(root / "run"), "--step", "3", "--to", "tf1", "--out", str(root / "original")]
    assert main(["export", *arguments]) == 0
    return root


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_of_the_original(run):
    """Out after three steps, in again, three more: bitwise the run that was never out."""
    assert main(pretrain(run, "resumed", "--resume-from", f"tf1:{run}/original/model.ckpt-3")) == 0
    for ours, theirs in zip(
        jax.tree.leaves(state_at(run, "run")), jax.tree.leaves(state_at(run, "resumed")), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_what_no_run_can_begin_with_is_one_line(run, there, tmp_path, capsys):
    source = f"tf1:{run}/original/model.ckpt-3"
    other = f"hf:{there}/export"
    for extra, expected in (
        (["--init-from", source, "--resume-from", source], "give one of them"),
        (["--warm-start-generator"], "need --init-from SOURCE"),
        (["--stretch-positions", "tile"], "need --init-from SOURCE"),
        (["--init-from", other], "trained with another vocabulary"),
        (["--init-from", f"{other}/generator"], "trained with another vocabulary"),
        (["--resume-from", other], "trained with another vocabulary"),
        (
            ["--resume-from", source, "--training.num_steps", "3"],
            "is at step 3, training.num_steps=3: no steps are left",
        ),
        (["--resume-from", source, "--optimizer.algorithm", "lamb"], "its moments are AdamW's"),
        (["--init-from", source, "--model.hidden_size", "64"], "tensors have other shapes, the first"),
        (["--init-from", source, "--model.max_position_embeddings", "128"], "--stretch-positions"),
    ):
        error = refusal(capsys, pretrain(run, "y", *extra))
        assert expected in error, error
    bare = tmp_path / "bare"
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--from", source, "--out", str(bare)]) == 0
    for part, expected in (
        ("discriminator", "has no generator"),
        ("generator", "a generator (hidden size 16, here 32)"),
    ):
        error = refusal(capsys, pretrain(run, "y", "--init-from", f"hf:{bare}/{part}"))
        assert expected in error, error
    error = refusal(capsys, pretrain(run, "y", "--resume-from", f"hf:{bare}"))
    assert "has no Adam moments" in error
