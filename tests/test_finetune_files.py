"""Numbers of a fine-tuning, and the small files of its own that it reads again: in range and whole, or one line."""

import json
import math
import shutil
from types import SimpleNamespace
from typing import get_type_hints

import jax
import pytest
import yaml
from test_finetune_data import SIZES
from weights_tools import random_weights

from electra_flax.config.ranges import Range
from electra_flax.errors import UserError
from electra_flax.finetuning.heads import make_head
from electra_flax.finetuning.predict import FineTuned
from electra_flax.finetuning.publish import Recipe, write_model
from electra_flax.finetuning.result import SeedResult
from electra_flax.finetuning.run import Request, _claim_out
from electra_flax.finetuning.task import Task, Training
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.storage.workdir import Workdir
from electra_flax.trees import nested

NUMBERS = {name: kind for name, kind in get_type_hints(Training).items() if kind in (int, float)}


@pytest.mark.parametrize("cls", [Task, Training])
def test_every_number_has_a_range(cls):
    numbers = {name for name, kind in get_type_hints(cls).items() if kind in (int, float)}
    hints = get_type_hints(cls, include_extras=True)
    assert numbers == {n for n, kind in hints.items() if isinstance(getattr(kind, "__metadata__", [0])[0], Range)}


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_taken_beyond_its_range(name):
    for value in ("-1", str(2**63), str(10**30), "1e400", "nan", "9" * 5000):
        with pytest.raises(UserError, match=name) as refused:
            load_training("nsmc", load_task("nsmc"), "", SIZES, [f"--{name}", value])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--epochs", str(10**21)], "epochs=1000000000000000000000: expected 1 to 10,000"),
        (["--patience", "-1"], "patience=-1: expected 0 to 10,000"),
        (["--weight_decay", "-1"], "weight_decay=-1.0: expected 0 to 1"),
        (["--max_seq_length", "3"], "max_seq_length=3: expected 4 to 65,536"),
    ],
)
def test_what_is_said_of_a_number_beyond_its_range(tmp_path, overrides, expected):
    with pytest.raises(UserError) as refused:
        load_training("nsmc", load_task("nsmc"), "", SIZES, overrides)
    assert str(refused.value) == f"--{expected}"
    own = {"title": "T", "kind": "classification", "files": {"train": ["a"]}, "metrics": ["accuracy"],
           "columns": {"text": "a"}, "training": {overrides[0][2:]: overrides[1]}}  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(UserError) as refused:
        load_training("own", load_task(str(tmp_path / "own.yaml")), "", SIZES, [])
    assert str(refused.value) == f"--task own: {expected}"


# ------------------------------------------------------------------------------------- a fine-tuned folder, and seeds


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder of finetune whose weights are random."""
    folder = tmp_path_factory.mktemp("tuned")
    weights, task = random_weights(folder / "random"), load_task("nsmc")
    training = load_training("nsmc", task, "", weights.architecture.model, ["--max_seq_length", "16"])
    head = make_head(task, training.head, weights.architecture.model, 2, 0.0)
    names = [name for name in weights.shapes if name.startswith("electra/")]
    params = {**nested({name: weights.read(name) for name in names}), **head.init(jax.random.key(0))}
    result = SeedResult(jax.device_get(params), 1, [], [], {}, math.inf, 0.0)
    recipe = Recipe(task, training, ["0", "1"], None)
    sizes = weights.architecture.model
    write_model(folder / "out", task, training, sizes, weights.vocabulary, weights.casing, ["0", "1"],
                result, recipe)  # fmt: skip
    return folder / "out"


def test_finetune_json_is_read_as_it_was_written(tuned):
    model = FineTuned(tuned)
    assert (model.task, model.labels, model.null_threshold) == (load_task("nsmc"), ["0", "1"], math.inf)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"labels": ["0"]},
            "need the tensor classifier/out_proj/bias of [1], which is of [2] in the weights",
        ),
        ({"labels": ["0", 1]}, "labels.1=1: expected a valid string"),
        ({"labels": None}, "labels=None: expected a valid array"),
        ({"more": 1}, "more: unknown field"),
        ({"task": {"kind": "tagging", "format": "conll", "metrics": ["entity_f1"]}}, "tensor classifier/bias of [2]"),
        ({"task": {"kind": "sorting"}}, "task.kind='sorting': expected 'classification', "),
        ({"task": {"metrics": []}}, "metrics: empty; of kind classification are accuracy"),
        ({"task": {"largest_score": -1}}, ": largest_score=-1.0: expected more than 0"),
        ({"training": {"head": "original"}}, "need the tensor task_specific/dense/bias of [2], which is missing"),
        ({"training": {"epochs": "3"}}, "training.epochs='3': expected a valid integer"),
        ({"training": {"epochs": 10**30}}, "epochs="),
        ({"training": {"max_seq_length": 65}}, "max_seq_length=65, but the model has 64 positions"),
    ],
)
def test_a_damaged_finetune_json_is_refused_with_its_field(tuned, tmp_path, change, expected):
    shutil.copytree(tuned, tmp_path / "copy")
    path = tmp_path / "copy/finetune.json"
    whole = json.loads(path.read_text())
    for name, value in change.items():
        whole[name] = {**whole[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError) as refused:
        FineTuned(tmp_path / "copy")
    assert str(refused.value).startswith(str(path)) and expected in str(refused.value)
    assert "copy the folder again" in str(refused.value) and "\n" not in str(refused.value)


SEED = {
    "seed": 1, "scores": {"accuracy": 0.5}, "chosen_step": 4, "chosen_by": {"accuracy": None}, "seconds": 1.0,
    "history": [{"step": 4, "loss": 0.5}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}", "seed: missing"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([SEED]), "expected"),
        (json.dumps({**SEED, "scores": {}}), "scores: lacks accuracy, a metric of NSMC"),
        (json.dumps({**SEED, "chosen_by": {"f1": 0.5}}), "chosen_by: lacks accuracy, a metric of NSMC"),
        (json.dumps({**SEED, "chosen_by": {"accuracy": "0.5"}}), "chosen_by.accuracy='0.5': expected a valid number"),
        (json.dumps({**SEED, "history": {}}), "history={}: expected a valid array"),
        (json.dumps(SEED), None),
    ],
)
def test_a_damaged_file_of_a_seed_is_seen_before_others_are_trained(tmp_path, content, expected):
    request = Request("nsmc", "m", tmp_path, tmp_path, seeds=(0, 1))
    run = SimpleNamespace(task=load_task("nsmc"), training=None)
    run.training = load_training("nsmc", run.task, "", SIZES, ())
    path = tmp_path / "seeds/1/results.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if expected is None:
        _claim_out(Workdir(tmp_path), request, run)
        return
    with pytest.raises(UserError) as refused:
        _claim_out(Workdir(tmp_path), request, run)
    assert str(refused.value).startswith(str(path)) and expected in str(refused.value)
    assert f"remove {path.parent} and run the same command again" in str(refused.value)
