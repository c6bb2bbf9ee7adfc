"""hparams.json of a checkpoint for the original: by its own rules, it alone gives every variable of the checkpoint."""

import dataclasses
import json
from pathlib import Path

import pytest
from golden_tools import RECORDED, read_json, tiny_config
from weights_tools import random_weights

from electra_flax.config.loading import load_config
from electra_flax.data.tokenizer import Casing
from electra_flax.errors import UserError
from electra_flax.model.electra import expected_shapes
from electra_flax.weights import names
from electra_flax.weights.export import export_to_tf1, original_hparams
from electra_flax.weights.sources import find_weights

CASED = Casing(do_lower_case=False, strip_accents=False)
PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
ODD = {
    "positions, segments and dropouts": tiny_config(
        model={"max_position_embeddings": 48, "type_vocab_size": 3, "attention_probs_dropout_prob": 0.3,
               "initializer_range": 0.1, "num_attention_heads": 4, "intermediate_size": 100},
        generator={"hidden_size": 7, "intermediate_size": 28},
    ),
    "a wider and deeper generator": tiny_config(
        model={"hidden_size": 33, "num_attention_heads": 3, "embedding_size": 33, "num_hidden_layers": 3},
        generator={"hidden_size": 130, "num_attention_heads": 2, "intermediate_size": 520, "num_hidden_layers": 5,
                   "embedding_sharing": "separate"},
    ),
    "one transformer": tiny_config(
        generator={"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2,
                   "untied_generator": False},
    ),
    "no generator": tiny_config(generator={"intermediate_size": 64, "uniform_generator": True}),
    "two towers": tiny_config(generator={"intermediate_size": 64, "two_towers": True}),
    "Electric with tables of its own": tiny_config(
        generator={"intermediate_size": 64, "embedding_sharing": "separate"}, objective={"kind": "electric"}
    ),
    "no discriminator": tiny_config(
        generator={"intermediate_size": 64}, objective={"kind": "masked_tokens"}, model={"type_vocab_size": 1}
    ),
}  # fmt: skip


def original_variables(hparams: dict, vocab_size: int = 30522) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters that the original builds, by its rules alone (docs/semantics.md, section 4)."""
    sizes = {"small": (256, 12), "base": (768, 12), "large": (1024, 24)}[hparams.get("model_size", "small")]
    overrides = hparams.get("model_hparam_overrides", {})
    config = {"max_position_embeddings": 512, "type_vocab_size": 2, "hidden_size": sizes[0],
              "num_hidden_layers": sizes[1]} | overrides  # fmt: skip
    config = {"intermediate_size": 4 * config["hidden_size"]} | config
    width, vocab = config["hidden_size"], hparams.get("vocab_size", vocab_size)
    small = 128 if hparams.get("model_size", "small") == "small" else None
    embedding = hparams.get("embedding_size", small) or width
    found: dict[str, tuple[int, ...]] = {}

    def dense(name, before, after):
        found.update({f"{name}/kernel": (before, after), f"{name}/bias": (after,)})

    def norm(name, size):
        found.update({f"{name}/LayerNorm/beta": (size,), f"{name}/LayerNorm/gamma": (size,)})

    def table(name, size):
        found[f"{name}/embeddings/word_embeddings"] = (vocab, size)
        found[f"{name}/embeddings/token_type_embeddings"] = (config["type_vocab_size"], size)
        found[f"{name}/embeddings/position_embeddings"] = (config["max_position_embeddings"], size)
        norm(f"{name}/embeddings", size)

    def transformer(name, width, layers, inner, embedding):
        if embedding != width:
            dense(f"{name}/embeddings_project", embedding, width)
        for i in range(layers):
            layer = f"{name}/encoder/layer_{i}"
            for part in ("query", "key", "value"):
                dense(f"{layer}/attention/self/{part}", width, width)
            dense(f"{layer}/attention/output/dense", width, width)
            norm(f"{layer}/attention/output", width)
            dense(f"{layer}/intermediate/dense", width, inner)
            dense(f"{layer}/output/dense", inner, width)
            norm(f"{layer}/output", width)

    electric, uniform = hparams.get("electric_objective", False), hparams.get("uniform_generator", False)
    electra = hparams.get("electra_objective", True) or electric
    towers = hparams.get("two_tower_generator", False) or electric
    has_own = electra and hparams.get("untied_generator", True) and not uniform
    head_width, head_embedding = width, embedding
    table("electra", embedding)
    transformer("electra", width, config["num_hidden_layers"], config["intermediate_size"], embedding)
    if has_own:
        head_width = int(round(width * hparams.get("generator_hidden_size", 0.25)))
        layers = int(round(config["num_hidden_layers"] * hparams.get("generator_layers", 1.0)))
        for name in ("generator_ltr", "generator_rtl") if towers else ("generator",):
            if hparams.get("untied_generator_embeddings", False):
                head_embedding = head_width
                table(name, head_width)
            transformer(name, head_width, layers, 4 * head_width, head_embedding)
    if not uniform:
        head = "cloze_predictions" if towers else "generator_predictions"
        dense(f"{head}/dense", 2 * head_width if towers else head_width, head_embedding)
        norm(head, head_embedding)
        found[f"{head}/output_bias"] = (vocab,)
    if electra:
        dense("discriminator_predictions/dense", width, width)
        dense("discriminator_predictions/dense_1", width, 1)
    return found


def heads(hparams: dict) -> tuple[int, int]:
    """Attention heads of discriminator and generator, by the original's rules."""
    overrides = hparams["model_hparam_overrides"]
    width = overrides["hidden_size"]
    ours = overrides.get("num_attention_heads", max(1, width // 64))
    return ours, max(1, int(round(width * hparams["generator_hidden_size"])) // 64)


def test_the_rules_are_those_of_the_original():
    """The function above against what the original itself built."""
    recorded = read_json(RECORDED / "variables_by_option.json.gz")
    assert len(recorded) >= 10
    for name, found in recorded.items():
        expected = {variable["name"]: tuple(variable["shape"]) for variable in found["variables"]}
        assert original_variables(found["hparams"], found["disc_config"]["vocab_size"]) == expected, name


@pytest.mark.parametrize("name", [*(path.stem for path in PRESETS), *ODD])
def test_hparams_alone_give_the_variables(name):
    config = ODD[name] if name in ODD else load_config(next(path for path in PRESETS if path.stem == name))
    hparams = json.loads(json.dumps(original_hparams(config.architecture, config.data.max_seq_length, CASED)))
    expected = {names.to_tf1(ours): shape for ours, shape in expected_shapes(config.architecture).items()}
    assert original_variables(hparams) == expected
    generator = config.generator.num_attention_heads if name != "one transformer" else 1
    assert heads(hparams)[0] == config.model.num_attention_heads
    if config.generator.untied_generator and config.objective.kind != "masked_tokens":
        assert heads(hparams)[1] == generator or config.generator.uniform_generator
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"):
        default = {"initializer_range": 0.02}.get(field, 0.1)
        assert hparams["model_hparam_overrides"].get(field, default) == getattr(config.model, field)


def test_what_the_original_cannot_build_is_said(tmp_path, caplog):
    with pytest.raises(UserError, match="generator.intermediate_size=65, which the original cannot build"):
        original_hparams(tiny_config(generator={"intermediate_size": 65}).architecture, 32, CASED)
    with pytest.raises(UserError, match="generator.num_attention_heads=2, which the original cannot build"):
        wide = tiny_config(generator={"num_attention_heads": 2, "intermediate_size": 64})
        original_hparams(wide.architecture, 32, CASED)
    export_to_tf1(random_weights(tmp_path, model={"layer_norm_eps": 1e-5}), tmp_path / "out")
    assert "layer_norm_eps=1e-05: the original's code has 1e-12 and reads no other" in caplog.text
    assert find_weights(f"tf1:{tmp_path}/out/model.ckpt-7").architecture.model.layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("hparams", "expected"),
    [
        ({"model_size": "base", "model_hparam_overrides": {"hidden_size": 256}}, 4),
        ({"model_size": "large", "model_hparam_overrides": {"hidden_size": 256, "num_attention_heads": 8}}, 8),
        ({"model_size": "small", "debug": True}, 4),
        ({}, 4),
    ],
)
def test_heads_of_a_checkpoint_follow_the_original(tmp_path, hparams, expected):
    weights = random_weights(tmp_path, model={"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4})
    weights = dataclasses.replace(weights, optimizer=None)
    prefix = export_to_tf1(weights, tmp_path / "out")
    (prefix.parent / "hparams.json").write_text(json.dumps(hparams))
    assert find_weights(f"tf1:{prefix}").architecture.model.num_attention_heads == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model_hparam_overrides": 3}', "hparams.json: model_hparam_overrides=3: expected"),
        (b'{"max_seq_length": "128"}', "hparams.json: max_seq_length='128': expected"),
        (b"[]", "hparams.json: the whole=[]: expected"),
        (b'{"model_hparam_overrides": {"num_attention_heads": 3}}', "hparams.json: model.hidden_size"),
        (b'{"max_seq_length": -1}', "hparams.json: data.max_seq_length=-1"),
        (b'{"max_seq_length": 4096}', "hparams.json: max_seq_length=4096 must be at most the 64 positions"),
        (b"", "hparams.json: not JSON"),
        (b"[" * 100_000, "hparams.json: not JSON"),
    ],
)
def test_hparams_that_are_none_are_named(tmp_path, content, expected):
    prefix = export_to_tf1(random_weights(tmp_path), tmp_path / "out")
    (prefix.parent / "hparams.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        find_weights(f"tf1:{prefix}")
    assert expected in str(caught.value)


def test_a_folder_of_checkpoints_says_which_are_there(tmp_path):
    prefix = export_to_tf1(random_weights(tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match=f"these are there: tf1:{prefix}$"):
        find_weights(f"tf1:{prefix.parent}")
    with pytest.raises(UserError, match="these are there: none$"):
        find_weights(f"tf1:{tmp_path}")
