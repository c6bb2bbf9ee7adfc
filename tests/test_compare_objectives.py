"""benchmarks/compare_objectives.py: its measures beside scikit-learn's, equal costs, and a comparison that goes on."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import electra_flax
from electra_flax.errors import UserError
from electra_flax.finetuning.result import Finetuned, Statistics

SCRIPT = Path(__file__).parents[1] / "benchmarks/compare_objectives.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("compare_objectives", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_measures_are_scikit_learns(script):
    rng = np.random.default_rng(0)
    is_replaced = rng.random(2000) < 0.2
    logits = np.round(rng.normal(size=2000) + is_replaced - 1, 1)  # with ties
    found = script.measured(logits, is_replaced)
    assert found["auc"] == pytest.approx(roc_auc_score(is_replaced, logits), abs=1e-9)
    entropy = log_loss(is_replaced, np.full(2000, is_replaced.mean()))
    probability = 1 / (1 + np.exp(-logits))
    assert found["gain"] == pytest.approx(entropy - log_loss(is_replaced, probability), abs=1e-9)
    # A constant that is added to all logits costs gain, and nothing once the share is told.
    moved = script.measured(logits + 3, is_replaced)
    assert moved["gain"] < 0 < found["gain"] <= found["gain_share_told"]
    assert moved["gain_share_told"] == pytest.approx(found["gain_share_told"], abs=1e-6)
    assert script.measured(np.full(2000, 0.3), is_replaced)["gain_share_told"] == pytest.approx(0, abs=1e-6)


def given(*more):
    arguments = argparse.Namespace(
        config="tiny", variants=SCRIPT.with_name("variants.yaml"), variant=[], only=None, set=[], steps=1000
    )
    return argparse.Namespace(**{**vars(arguments), **dict(more)})


@pytest.mark.slow
def test_variants_cost_the_same(script):
    variants = script.of_equal_cost(
        given(("variant", [["CLM", "generator.untied_generator=true", "objective.corrective_lm_weight=2"]]))
    )
    first = variants[0].config.training.num_steps * variants[0].step_flops
    assert variants[0].name == "shared" and variants[0].config.training.num_steps == 1000
    for variant in variants:
        assert variant.config.training.num_steps * variant.step_flops == pytest.approx(first, abs=variant.step_flops)
        warmup = variant.config.optimizer.warmup_steps / variant.config.training.num_steps
        assert warmup == pytest.approx(200 / 8000, abs=1e-3)
    named = {variant.name: variant.config for variant in variants}
    assert named["CLM"].training.num_steps < 900 and named["CLM"].objective.corrective_lm_weight == 2
    assert variants[0].of_seed(2).training.seed == variants[0].of_seed(2).data.shuffle_seed == 2
    for wrong in (
        ("only", ["sharde"]),
        ("variant", [["shared!"], ["shared?"]]),
        ("set", ["training.seed"]),
        ("set", ["training.sed=1"]),
    ):
        with pytest.raises(UserError):
            script.of_equal_cost(given(wrong))


@pytest.mark.long
def test_a_comparison_goes_on_where_it_was(script, copy, capsys, monkeypatch):
    """Cut off within its third run; then everything is there."""
    monkeypatch.setattr(sys, "argv", [
        "compare", "--config", "tiny.yaml", "--data", "shards", "--out", "compared", "--generator", "export", "--seeds",
        "2", "--only", "shared", "hot", "--variant", "hot", "objective.temperature=2",
    ])  # fmt: skip
    trained, pretrain = [], electra_flax.pretrain

    class Cut(electra_flax.Callbacks):
        def on_metrics(self, step, metrics):
            if len(trained) == 3 and step == 4:
                raise KeyboardInterrupt

    def recorded(config, data, workdir):
        trained.append(workdir.name)
        return pretrain(config, data, workdir, callbacks=Cut(), progress=False)

    monkeypatch.setattr(electra_flax, "pretrain", recorded)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert script.main() == 0
    assert trained == ["shared-0", "hot-0", "shared-1", "shared-1", "hot-1"]
    out, err = capsys.readouterr()
    assert "run 3 of 4: shared, seed 1, 6 steps" in err and out == (copy / "compared/table.md").read_text()
    results = [json.loads(line) for line in (copy / "compared/results.jsonl").read_text().splitlines()]
    aucs = {name: [each["auc"] for each in results if each["variant"] == name] for name in ("shared", "hot")}
    rows = {row.split("|")[1].strip(): row for row in out.splitlines()[2:]}
    for name, values in aucs.items():
        error = abs(values[0] - values[1]) / 2  # of a mean of two
        assert f"| {np.mean(values):.4f} ± {error:.4f} |" in rows[name]
    assert script.main() == 0 and len(trained) == 5 and capsys.readouterr().out == out

    # A task is asked about afterwards: nothing is trained again but its fine-tuning.
    tuned = []

    def finetune(task, model, data, out, seeds):
        tuned.append((task, model.name, data, Path(out).name, seeds))
        return Finetuned("NSMC", {"accuracy": Statistics(0.5 + len(tuned) / 10, None, [])}, *[None] * 7)

    monkeypatch.setattr(electra_flax, "finetune", finetune)
    sys.argv[1:1] = ["--task", "nsmc=nsmc"]
    assert script.main() == 0 and tuned[0] == ("nsmc", "shared-0", "nsmc", "shared-0-nsmc", (0,)) and len(tuned) == 4
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| NSMC accuracy |") and table[2].endswith("| 0.7000 ± 0.1000 |")
    for before, after in zip(out.splitlines(), table, strict=True):
        assert after.startswith(before)
    sys.argv[-1] = "objective.temperature=3"
    assert script.main() == 1 and "hot was trained with other fields" in capsys.readouterr().err
