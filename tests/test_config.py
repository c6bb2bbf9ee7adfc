"""Every preset loads and is what its name says; whatever is wrong is refused with the field and the value."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import pytest
from golden_tools import RECORDED, read_json, tiny_config

from electra_flax.config.loading import config_differences, config_to_yaml, fields_from, load_config
from electra_flax.config.objective import ObjectiveKind
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.config.schema import Config
from electra_flax.errors import UserError, ranges
from electra_flax.model import electra
from electra_flax.runtime.flags import fields_help
from electra_flax.training.objectives import OBJECTIVES
from electra_flax.training.objectives.metrics import METRICS
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.weights.hugging_face import hugging_face_config

CONFIGS = Path(__file__).parents[1] / "configs"
# vocabulary, hidden, generator hidden / heads / feed-forward, length, batch, steps, learning rate, masked share.
# Sources: paper, table 6; KoELECTRA's table; the original's README for small++.
PRESETS = {
    "demo": (2000, 128, 64, 1, 256, 64, 64, 150, None, 0.3),
    "demo_continue": (4000, 128, 128, 4, 512, 64, 64, 150, None, 0.15),
    "tiny": (4000, 128, 128, 4, 512, 64, 64, 8000, None, 0.4),
    "tiny_ko": (4000, 128, 128, 4, 512, 64, 64, 4500, None, 0.3),
    "koelectra_base_v1": (32200, 768, 256, 4, 1024, 512, 256, 700_000, 2e-4, 0.15),
    "koelectra_base_v3": (35000, 768, 256, 4, 1024, 512, 256, 1_500_000, 2e-4, 0.15),
    "koelectra_small_v1": (32200, 256, 256, 4, 1024, 512, 512, 300_000, 5e-4, 0.15),
    "koelectra_small_v3": (35000, 256, 256, 4, 1024, 512, 512, 800_000, 5e-4, 0.15),
    "electra_small": (30522, 256, 64, 1, 256, 128, 128, 1_000_000, 5e-4, 0.15),
    "electra_small_pp": (30522, 256, 256, 4, 1024, 512, 128, 4_000_000, 5e-4, 0.15),
    "electra_base": (30522, 768, 256, 4, 1024, 512, 256, 766_000, 2e-4, 0.15),
    "electra_large": (30522, 1024, 256, 4, 1024, 512, 2048, 400_000, 2e-4, 0.25),
}


def test_every_preset_is_in_the_table():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name, tmp_path):
    path = CONFIGS / f"{name}.yaml"
    config = load_config(path)
    g, rate = config.generator, config.optimizer.learning_rate
    assert (
        config.model.vocab_size, config.model.hidden_size, g.hidden_size, g.num_attention_heads,
        g.intermediate_size, config.data.max_seq_length, config.training.batch_size, config.training.num_steps,
        rate if PRESETS[name][8] else None, config.masking.mask_prob,
    ) == PRESETS[name]  # fmt: skip
    header = path.read_text().split("model:")[0]
    for word in ("# Command:", "# Hardware:", "# Time:"):
        assert word in header
    assert re.search("published|predicted|measured|not published", header)
    assert fields_from(Config, __import__("yaml").safe_load(config_to_yaml(config)), (), "round trip", "") == config


def test_the_source_is_parsed_once(monkeypatch):
    """What a failure of Python's parser would take away later: all fields."""
    load_config(CONFIGS / "demo.yaml")
    monkeypatch.setattr(ast, "parse", None)
    assert load_config(CONFIGS / "demo.yaml", ["--training.num_steps", "900"]).training.num_steps == 900


@pytest.mark.parametrize(
    ("option", "preset"),
    [
        ("koelectra_small_gen1.0", "koelectra_small_v1"),
        ("koelectra_base_seq512", "koelectra_base_v1"),
        ("small_default_gen0.25", "electra_small"),
        ("large_gen0.25_mask0.25", "electra_large"),
    ],
)
def test_parameters_are_the_originals(option, preset):
    """Names, shapes, weight decay and count of every variable of the full-size model."""
    from electra_flax.training.optimizers.optimizer import is_decayed
    from electra_flax.trees import tree_names
    from electra_flax.weights.names import to_tf1

    expected = read_json(RECORDED / "variables_by_option.json.gz")[option]
    vocab = str(next(v["shape"][0] for v in expected["variables"] if v["name"].endswith("word_embeddings")))
    length = str(expected["hparams"].get("max_seq_length", 128))
    overrides = ["--model.vocab_size", vocab, "--data.max_seq_length", length]
    config = load_config(CONFIGS / f"{preset}.yaml", overrides)
    shapes = jax.eval_shape(lambda: electra.init(config.architecture, jax.random.key(0)))
    names = jax.tree.leaves(tree_names(shapes))
    decays = jax.tree.leaves(is_decayed(shapes))
    ours = {
        to_tf1(name): (list(leaf.shape), decay)
        for name, leaf, decay in zip(names, jax.tree.leaves(shapes), decays, strict=True)
    }
    theirs = {v["name"]: (v["shape"], v["weight_decay"]) for v in expected["variables"]}
    assert ours == theirs
    assert config.max_predictions_per_seq == expected["max_predictions_per_seq"]


DEMO_CONFIG = load_config(CONFIGS / "demo.yaml")
DEMO = f"{CONFIGS / 'demo.yaml'}: "


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # Names: an override is named as it was given, with what it may have meant.
        (["--model.hiden_size", "64"], "--model.hiden_size: unknown field; did you mean model.hidden_size"),
        (["--optimizer.learning_rat", "1"], "--optimizer.learning_rat: unknown field; did you mean optimizer"),
        (["--learning-rate", "1"], "--learning-rate: unknown field; did you mean optimizer.learning_rate"),
        (["--seed=1"], "--seed: unknown field; did you mean training.seed or evaluation.seed"),
        (["--fields-from", "{}"], "--fields-from: unknown field; electra-flax pretrain --help lists all fields"),
        (["--zzz", "1"], "--zzz: unknown field; electra-flax pretrain --help lists all fields"),
        (["--model", "{hiden_size: 3}"], f"{DEMO}model.hiden_size: unknown field; did you mean model.hidden_size"),
        (["--training.seed", "1", "stray"], "unrecognized arguments: stray"),
        (["--training.seed"], "--training.seed: expected a value after it"),
        # Values.
        (["--model.hidden_size", "wide"], "--model.hidden_size=wide: expected int, 1 to 1,048,576"),
        (["--generator.dropout", "x"], "--generator.dropout=x: expected float, at least 0 and less than 1"),
        (["--masking.final_mask_prob=true"], "--masking.final_mask_prob=True: expected float, more than 0"),
        (["--generator.dropout", "1"], "--generator.dropout=1.0: expected at least 0 and less than 1"),
        (["--masking.unit", "words"], "--masking.unit=words: expected one of 'token', 'word', 'span'"),
        (["--training.compute_dtype", "float16"], "--training.compute_dtype=float16: expected one of 'float32'"),
        (["--model", "3"], "--model: expected fields and their values, or each as --model.FIELD VALUE"),
        (["--training.seed", "9" * 5000], "--training.seed: Exceeds the limit"),
        (["--optimizer.learning_rate", "9" * 400], f"{DEMO}a number with hundreds of digits"),
        # Relations: what is the file's is named without --.
        (["--model.hidden_size", "129"], f"{DEMO}--model.hidden_size=129 must be a multiple of model.num_attention"),
        (["--data.max_seq_length", "1024"], f"{DEMO}--data.max_seq_length=1024 must be at most model.max_position_emb"),
        (["--training.num_steps", "10"], f"{DEMO}optimizer.warmup_steps=40 must be at most --training.num_steps=10"),
        (["--generator.untied_generator", "false"], f"{DEMO}generator.hidden_size=64 must equal model.hidden_size=128"),
        (["--training.gradient_accumulation_steps", "3"], f"{DEMO}training.batch_size=64 must be a multiple of --"),
        (["--mesh.data=-1", "--mesh.fsdp=-1", "--mesh.tensor=1"], "--mesh.data=-1, --mesh.fsdp=-1, --mesh.tensor=1: "),
    ],
)  # fmt: skip
def test_refusals_name_the_place_the_field_and_the_value(overrides, expected):
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "demo.yaml", overrides)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value) and len(str(error.value)) < 250


def test_refusals_name_the_file_where_the_field_stands_there(tmp_path):
    path = tmp_path / "c.yaml"
    text = (CONFIGS / "demo.yaml").read_text()
    for line, expected in (
        (
            "optimizer: {learning_rat: 1}",
            "optimizer.learning_rat: unknown field; did you mean optimizer.learning",
        ),
        (
            "training: {batch_size: 64, num_steps: 4294967296}",
            "training.num_steps=4294967296: expected 1 to 2,147",
        ),
        ("data: {max_seq_length: .nan}", "data.max_seq_length=nan: expected int, 1 to 1,048,576"),
        ("training: {batch_size: 64, num_steps: 0x" + "f" * 6000 + "}", "training.num_steps=a number of thousands"),
    ):
        section = line.partition(":")[0]
        path.write_text(re.sub(rf"^{section}:\n(  .*\n)+", f"{line}\n", text, flags=re.MULTILINE))
        with pytest.raises(UserError) as error:
            load_config(path, ["--training.seed", "1"] if section != "training" else [])
        assert str(error.value).startswith(f"{path}: {expected}")


ALWAYS_WRONG = (10**400, float("nan"), float("inf"), float("-inf"))
OFTEN_WRONG = (0, -1, 2**31, 2**63, 10**30)
FIELDS = [
    (section.name, field.name)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.type)
    if get_type_hints(section.type)[field.name] in (int, float)
]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_number_has_a_range(section, name):
    kind = {field.name: field.type for field in dataclasses.fields(Config)}[section]
    allowed = ranges(kind)[name]
    good = getattr(DEMO_CONFIG, section)
    for value in (*ALWAYS_WRONG, *(value for value in OFTEN_WRONG if value not in allowed)):
        with pytest.raises(UserError) as error:
            dataclasses.replace(good, **{name: value})
        assert str(error.value).startswith(f"{section}.{name}=") and str(error.value).endswith(f": expected {allowed}")
    value = 10**30 if get_type_hints(kind)[name] is int else -1.5
    checkpoint = {section: dataclasses.asdict(good) | {name: value}}
    for place, refused in (
        ("--", lambda: load_config(CONFIGS / "demo.yaml", [f"--{section}.{name}={value}"])),
        (
            "checkpoint 7: ",
            lambda: fields_from(Config, dataclasses.asdict(DEMO_CONFIG) | checkpoint, (), "checkpoint 7", ""),
        ),
    ):
        with pytest.raises(UserError) as error:
            refused()
        assert str(error.value) == f"{place}{section}.{name}={value}: expected {allowed}"


def test_generator_size_has_no_default(tmp_path):
    text = (CONFIGS / "koelectra_base_v3.yaml").read_text()
    (tmp_path / "c.yaml").write_text(re.sub(r"generator:.*?data:", "data:", text, flags=re.DOTALL))
    with pytest.raises(UserError, match="required"):
        load_config(tmp_path / "c.yaml")


def test_help_explains_every_field():
    text = " ".join(fields_help(Config, "from the preset").split())
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type):
            assert f"--{section.name}.{field.name} " in text
    assert "Peak of the schedule. (from the preset, float, more than 0 and at most 1,000)" in text
    for word in ("required", "Annotated", "Literal", "configuration file", "--data "):  # --data names the shards
        assert word not in text


def test_differences_are_shown():
    old = load_config(CONFIGS / "demo.yaml")
    new = load_config(CONFIGS / "demo.yaml", ["--model.hidden_size", "64"])
    assert config_differences(old, new) == {"model.hidden_size": "128 -> 64"}


def test_every_word_of_the_schema_has_its_file():
    assert OPTIMIZERS.keys() == set(get_args(get_type_hints(OptimizerConfig)["algorithm"]))
    assert OBJECTIVES.keys() == METRICS.keys() == set(get_args(ObjectiveKind))


def test_every_field_of_a_model_is_one_of_hugging_face():
    """Else an export would compute something else without a word."""
    sizes = tiny_config().model
    assert vars(sizes).keys() <= hugging_face_config(sizes, "ElectraForMaskedLM", 0, "float32").keys()


def test_a_generator_may_have_its_own_dropout():
    config = load_config(CONFIGS / "demo.yaml", ["--generator.dropout", "0.25", "--model.hidden_dropout_prob", "0.1"])
    generator, model = config.architecture.generator, config.architecture.model
    assert (generator.hidden_dropout_prob, generator.attention_probs_dropout_prob) == (0.25, 0.25)
    assert model.hidden_dropout_prob == 0.1
    with pytest.raises(UserError, match=r"generator.dropout=0.0 needs a transformer"):
        load_config(CONFIGS / "tiny.yaml", ["--generator.dropout", "0"])
    for other in ("--generator.uniform_generator=true", "--objective.kind=masked_tokens"):
        with pytest.raises(UserError, match=r"generator.dropout"):
            load_config(CONFIGS / "demo.yaml", ["--generator.dropout", "0", other])


TWO, ELECTRIC = "--generator.two_towers=true", "--objective.kind=electric"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([TWO], ""), ([ELECTRIC], ""), ([ELECTRIC, "--generator.embedding_sharing=separate"], ""),
        ([TWO, "--masking.final_mask_prob=0.3"], ""),
        ([TWO, "--objective.kind=masked_tokens"], "--generator.two_towers=true needs a discriminator"),
        ([TWO, "--generator.untied_generator=false"], "--generator.two_towers=true needs --generator.untied_generator"),
        ([ELECTRIC, "--generator.untied_generator=false"], "--objective.kind=electric has two towers, and needs"),
        ([ELECTRIC, "--generator.uniform_generator=true"], "--objective.kind=electric has two towers, and needs a gen"),
        ([ELECTRIC, "--masking.final_mask_prob=0.3"], "--objective.kind=electric needs one masking.mask_prob"),
    ],
)  # fmt: skip
def test_what_two_towers_need(overrides, expected):
    if not expected:
        architecture = load_config(CONFIGS / "demo.yaml", overrides).architecture
        assert architecture.has_two_towers and architecture.generator and architecture.parts == ["discriminator"]
        assert architecture.logit == ("energy" if ELECTRIC in overrides else "replaced")
        return
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "demo.yaml", overrides)
    message = str(error.value)
    assert expected in message and "\n" not in message and len(message) < 250


@pytest.mark.parametrize(
    ("section", "old", "value", "field", "today"),
    [
        ("objective", "electra_objective", False, "kind", "masked_tokens"),
        ("objective", "electra_objective", True, "kind", "replaced_tokens"),
        ("generator", "untied_generator_embeddings", True, "embedding_sharing", "separate"),
        ("generator", "untied_generator_embeddings", False, "embedding_sharing", "shared"),
    ],
)
def test_configurations_of_earlier_versions_are_read(section, old, value, field, today):
    fields = dataclasses.asdict(load_config(CONFIGS / "demo.yaml"))
    del fields[section][field]
    fields[section][old] = value
    config = fields_from(Config, fields, (), "config.yaml", "")
    assert getattr(getattr(config, section), field) == today
    with pytest.raises(UserError, match=rf"--{section}.{old}: unknown field; it is {section}.{field} now"):
        load_config(CONFIGS / "demo.yaml", [f"--{section}.{old}={value}"])
    fields[section][old] = "yes"
    with pytest.raises(UserError, match=rf"config.yaml: {section}.{old}: unknown field; it is {section}.{field} now"):
        fields_from(Config, fields, (), "config.yaml", "")
