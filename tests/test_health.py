"""The health of a run: what the discriminator knows, whether states differ, and a probe of them."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from finetune_tools import write_sentiment, write_similarity
from golden_tools import init_params
from run_tools import pretrain, records, refusal, state_at
from sklearn.metrics import average_precision_score

from electra_flax.commands.cli import main
from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.config.loading import load_config
from electra_flax.config.schema import MeshConfig
from electra_flax.data.pipeline import evaluation_batches
from electra_flax.model import electra
from electra_flax.model.attention import xla_attention
from electra_flax.model.sharding import make_mesh
from electra_flax.training import losses
from electra_flax.training.health import make_read_states, state_sums
from electra_flax.training.objectives.metrics import health_of, metrics_of
from electra_flax.training.probe import Labelled, predict


def discriminator_metrics(logits_BT, is_replaced_BT, mask_BT):
    """As they are recorded."""
    sums = losses.replaced_token_sums(logits_BT, is_replaced_BT, mask_BT) | {"tokens": mask_BT.sum()}
    totals = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    found = [metric for metric in metrics_of(load_config("configs/demo.yaml")) if metric.name.startswith("disc")]
    return {metric.name: metric.value(totals) for metric in found}


@pytest.mark.parametrize("knows", [0.0, 3.0])
def test_gain_and_average_precision_are_those_of_the_tokens(knows):
    rng = np.random.default_rng(0)
    mask_BT = (np.arange(64) < rng.integers(30, 65, (16, 1))).astype(np.int32)
    is_replaced_BT = rng.random((16, 64)) < 0.12
    logits_BT = (rng.normal(-2, 1, (16, 64)) + knows * is_replaced_BT).astype(np.float32)
    found = discriminator_metrics(logits_BT, is_replaced_BT, mask_BT)

    replaced, probability = is_replaced_BT[mask_BT > 0], 1 / (1 + np.exp(-logits_BT[mask_BT > 0].astype(np.float64)))
    rate = replaced.mean()
    told = np.log(np.where(replaced, probability, 1 - probability)).mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert found["discriminator_gain"] == pytest.approx(entropy + told, abs=1e-5)
    # The 200 thresholds make tokens between two of them alike.
    precision = average_precision_score(replaced, np.ceil(probability * 199))
    assert found["discriminator_average_precision"] == pytest.approx(precision, abs=1e-6)
    assert found["discriminator_average_precision_over_rate"] == pytest.approx(precision / rate, rel=1e-5)
    assert (found["discriminator_gain"] > 0.03) == (knows > 0)
    assert (found["discriminator_average_precision_over_rate"] > 2) == (knows > 0)


def test_one_answer_for_all_gains_nothing():
    is_replaced_BT = np.arange(1000).reshape(10, 100) % 8 == 0
    mask_BT = np.ones((10, 100), np.int32)
    found = discriminator_metrics(np.full((10, 100), np.log(1 / 7), np.float32), is_replaced_BT, mask_BT)
    assert found["discriminator_gain"] == pytest.approx(0, abs=1e-6)
    assert found["discriminator_average_precision_over_rate"] == pytest.approx(1, rel=1e-5)
    nothing = discriminator_metrics(np.zeros((10, 100), np.float32), is_replaced_BT & False, mask_BT)
    assert nothing["discriminator_average_precision_over_rate"] == 0
    assert nothing["discriminator_gain"] == pytest.approx(-np.log(2), abs=1e-4)


CONFIG = load_config("configs/demo.yaml", ["--model.vocab_size", "50", "--data.max_seq_length", "16",
                                           "--training.batch_size", "8"])  # fmt: skip
MODEL = ModelConfig(
    vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, initializer_range=0.3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "has_discriminator"), [(MeshConfig(), True), (MeshConfig(data=2, fsdp=2, tensor=2), False)], ids=str
)
def test_states_are_those_of_all_tokens_and_pairs(mesh, has_discriminator):
    """On any mesh, over several batches, the last of which is not full; of a masked-language model too."""
    architecture = Architecture(MODEL, None, has_discriminator_head=has_discriminator)
    params = init_params(architecture)
    rng = np.random.default_rng(0)
    mask = (np.arange(16) < rng.integers(3, 17, (19, 1))).astype(np.int32)
    rows = Labelled(np.stack([rng.integers(5, 50, (19, 16)) * mask, mask, mask * 0], axis=1).astype(np.int32), mask)
    read_states = make_read_states(architecture, make_mesh(mesh), xla_attention)
    batches = evaluation_batches(CONFIG, rows, make_mesh(mesh), 99)
    found = health_of(state_sums(read_states, params, batches).sums)

    hidden = np.asarray(electra.apply_encoder(architecture, params, *rows.features.swapaxes(0, 1)), np.float64)
    tokens = hidden[mask > 0]
    assert found["state_spread"] == pytest.approx(np.sqrt(((tokens - tokens.mean(0)) ** 2).mean()), rel=1e-5)
    means = [row[kept > 0].mean(axis=0) for row, kept in zip(hidden, mask, strict=True)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(means, 2)]
    assert found["sequence_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert "probe_accuracy" not in found


def test_a_spread_far_below_the_mean_is_seen():
    """Where float32 sums of squares would lose it."""

    def read_states(params, batch):
        return make_read_states(Architecture(MODEL, None), make_mesh(MeshConfig()), xla_attention)(params, batch)

    params = init_params(Architecture(MODEL, None))
    norm = params["electra"]["encoder"]["layer"]["0"]["output"]["LayerNorm"]
    norm["scale"], norm["bias"] = norm["scale"] * 1e-4, norm["bias"] + 7.0
    features = np.random.default_rng(0).integers(5, 50, (8, 3, 16)).astype(np.int32)
    features[:, 1:] = [[[1] * 16, [0] * 16]]
    batches = evaluation_batches(CONFIG, Labelled(features, features[:, 0, 0]), make_mesh(MeshConfig()), 1)
    found = health_of(state_sums(read_states, params, batches).sums)
    assert 0.5e-4 < found["state_spread"] < 1.1e-4 and found["sequence_cosine"] > 0.999


def test_a_probe_tells_what_can_be_told():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    told = rng.normal(size=(600, 8)) + 1e3
    told[:, :3] += 6 * np.eye(3)[labels]
    assert (predict(told[:300], labels[:300], told[300:]) == labels[300:]).mean() > 0.99
    noise = rng.normal(size=(600, 8))
    assert (predict(noise[:300], labels[:300], noise[300:]) == labels[300:]).mean() < 0.45
    same = np.ones((600, 8))
    assert set(predict(same[:300], labels[:300], same[300:])) == {np.bincount(labels[:300]).argmax()}


@pytest.fixture(scope="module")
def root(whole, tmp_path_factory):
    """Shards, a run of six steps, and small tasks."""
    root = shutil.copytree(whole, tmp_path_factory.mktemp("health"), dirs_exist_ok=True)
    write_sentiment(root / "nsmc")
    write_similarity(root / "korsts")
    return root


@pytest.mark.slow
def test_a_probe_is_recorded_and_changes_nothing(root, capsys):
    given = ["--probe", f"nsmc={root}/nsmc"]
    assert main(pretrain(root, "probed", *given)) == 0
    for ours, theirs in zip(*(jax.tree.leaves(state_at(root, name)) for name in ("probed", "run")), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert records(root, "probed", "train") == records(root, "run", "train")
    probed, plain = (records(root, name, "validation") for name in ("probed", "run"))
    assert all({"state_spread", "sequence_cosine", "discriminator_gain"} < record.keys() for record in plain.values())
    for step, record in probed.items():
        assert record | plain[step] == record and record.keys() - plain[step].keys() == {
            "probe_accuracy", "probe_base_rate"
        }  # fmt: skip
    labels = [line.split("\t")[2] for line in (root / "nsmc/ratings_test.txt").read_text().splitlines()[1:]]
    assert probed[6]["probe_base_rate"] == max(labels.count(label) for label in labels) / len(labels)
    capsys.readouterr()
    assert main(["evaluate", "--workdir", str(root / "probed"), *given]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: printed[name] for name in probed[6] if name not in ("step", "split")} == pytest.approx(
        {name: value for name, value in probed[6].items() if name not in ("step", "split")}, rel=1e-6
    )


def test_what_is_no_probe_is_one_line(root, capsys):
    def refused(given):
        return refusal(capsys, pretrain(root, "new", "--probe", given))

    assert "--probe nsmc: expected TASK=DIR" in refused("nsmc")
    assert "unknown task: expected one of" in refused(f"what={root}")
    assert "KorSTS is of kind regression: give a classification" in refused(f"korsts={root}/korsts")
    assert f"--probe nsmc={root}: no training file of NSMC: expected ratings_train.txt" in refused(f"nsmc={root}")
    assert not (root / "new").exists()
    assert "no training file of NSMC" in refusal(
        capsys, ["evaluate", "--workdir", str(root / "run"), "--probe", f"nsmc={root}"]
    )
