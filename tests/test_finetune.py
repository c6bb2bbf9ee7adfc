"""Fine-tuning from files to a folder that transformers loads, its interruptions, and predict and scoreboard on it."""

import io
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from finetune_tools import QUICK, write_names, write_questions, write_sentiment, write_similarity
from run_tools import TIMING, end, refusal, start_pair
from weights_tools import export_both

from electra_flax.commands.cli import main, parser
from electra_flax.config.loading import load_config
from electra_flax.errors import Preempted, UserError
from electra_flax.finetuning import seed as one_seed
from electra_flax.finetuning.predict import FineTuned
from electra_flax.finetuning.predictions import Answered, best_null_threshold, scores
from electra_flax.finetuning.run import Request, finetune
from electra_flax.finetuning.step import optimizer_of
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.model.attention import xla_attention
from electra_flax.runtime.flags import parse
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage.workdir import Workdir
from electra_flax.training.optimizers import scale_by_layer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`export` is a model with random weights; the folders of tasks are named as the tasks."""
    root = export_both(tmp_path_factory.mktemp("finetune"))
    write_sentiment(root / "data/nsmc")
    write_similarity(root / "data/korsts")
    write_names(root / "data/naver-ner")
    write_questions(root / "data/squad2", impossible=True)
    return root


def run(root, task, out, *overrides, seeds=(0,), interruption=None, **changes):
    request = Request(task, str(root / "export"), root / "data" / task, out, "koelectra", [*QUICK, *overrides], seeds,
                      **changes)  # fmt: skip
    return finetune(request, interruption or Interruption(None))


# What transformers makes of a folder: the class, and our output of the same inputs.
CLASSES = {
    "nsmc": "ElectraForSequenceClassification",
    "korsts": "ElectraForSequenceClassification",
    "naver-ner": "ElectraForTokenClassification",
    "squad2": "ElectraForQuestionAnswering",
}


@pytest.mark.parametrize(
    "task",
    [
        "nsmc",
        pytest.param("squad2", marks=pytest.mark.slow),
        pytest.param("korsts", marks=pytest.mark.slow),
        pytest.param("naver-ner", marks=pytest.mark.slow),
    ],
)
def test_a_folder_is_what_transformers_loads(root, tmp_path, task):
    import transformers

    results = run(root, task, tmp_path / "out")
    assert results.best_seed == 0 and set(results.metrics) == set(load_task(task).metrics)
    out = tmp_path / "out"
    texts = {
        "korsts": (["한국어", "짧은"], ["한국어", "문장"]),
        "squad2": (["한국", "짧은"], ["공유 한국 어", "문장 짧은 다"]),
    }
    inputs = transformers.ElectraTokenizerFast.from_pretrained(out)(
        *texts.get(task, (["한국어 공유", "짧은"],)), return_tensors="np", padding=True
    )
    model = FineTuned(out)
    batch = {name: np.asarray(inputs[name], np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours = jax.device_get(model.outputs(batch))
    with jax.numpy_rank_promotion("allow"):
        flax, params = getattr(transformers, "Flax" + CLASSES[task]).from_pretrained(out, _do_init=False)
        found = jax.jit(lambda params: flax(**batch, params=params))(params)
    theirs = [found]
    if has_torch := find_spec("torch") is not None:
        import torch

        cls = getattr(transformers, CLASSES[task])
        loaded, report = cls.from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        with torch.no_grad():
            theirs.append(loaded.eval()(**{name: torch.tensor(value).long() for name, value in batch.items()}))
    used = batch["attention_mask"] == 1
    for found in theirs:
        if task == "squad2":
            pairs = [(ours["start"], found.start_logits), (ours["end"], found.end_logits)]
        else:
            logits = np.asarray(found.logits)
            pairs = [(ours["logits"], logits[:, 0] if task == "korsts" else logits)]
        for a, b in pairs:
            a, b = np.asarray(a), np.asarray(b)
            where = used if a.shape[:2] == used.shape else slice(None)
            np.testing.assert_allclose(a[where], b[where], atol=1e-5)
    if task == "nsmc":
        assert transformers.AutoConfig.from_pretrained(out).id2label == {0: "negative", 1: "positive"}
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    if not has_torch:
        pytest.skip("NOT CHECKED: PyTorch is not installed (Flax was checked)")


def records_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def test_seeds_predictions_and_statistics(root, tmp_path, capsys, monkeypatch):
    out, doing, attended = tmp_path / "out", [], []
    monkeypatch.setattr(Watchdog, "alive", lambda self, what: doing.append((self._seconds, what)))

    def attend(*inputs, **how):
        attended.append(inputs[0].shape[1])
        return xla_attention(*inputs, **how)

    monkeypatch.setattr("electra_flax.finetuning.run.choose_by_length", lambda architecture, mesh, longest: attend)
    results = run(root, "nsmc", out, "--epochs", "8", seeds=(1, 2))
    values = results.metrics["accuracy"].values
    assert results.metrics["accuracy"].mean == pytest.approx(np.mean(values))
    assert results.metrics["accuracy"].deviation == pytest.approx(np.std(values, ddof=1))
    assert min(values) > 0.9, "one letter says it all"
    assert results.chosen_by == "6 held-out training examples" and "test" in results.scored
    lines = (out / "predictions.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 33
    labels = [line.split("\t")[2] for line in (root / "data/nsmc/ratings_test.txt").read_text().splitlines()[1:]]
    found = [line.split("\t")[1] for line in lines[1:]]
    best = results.metrics["accuracy"].values[(1, 2).index(results.best_seed)]
    assert np.mean([a == b for a, b in zip(labels, found, strict=True)]) == pytest.approx(best)
    for seed in results.seeds:
        best = max(seed.history, key=lambda one: one["accuracy"])
        assert seed.chosen_by["accuracy"] == best["accuracy"]
        assert [one["step"] for one in seed.history] == [4 * (i + 1) for i in range(8)]

        records = records_of(out / f"seeds/{seed.seed}")
        shown = [(one["step"], one["accuracy"]) for one in records if one["split"] == "validation"]
        assert shown == [(one["step"], one["accuracy"]) for one in seed.history]
        shown = [(one["step"], one["loss"]) for one in records if one["split"] == "train"]
        assert shown == [(one["step"], one["loss"]) for one in seed.history]
    assert records_of(out) == records_of(out / f"seeds/{results.best_seed}")
    assert {seconds for seconds, _ in doing} == {30 * 60.0} and set(attended) == {16}
    assert {"reading the checkpoint", "step 2", "step 33", "predicting", "saving step 4"} <= {what for _, what in doing}

    capsys.readouterr()
    assert main(["predict", "--model", str(out), "한국어 공유", "짧은 문장"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("positive ") and second.startswith("negative ") and second.endswith("\t짧은 문장")
    assert main(["predict", "--model", str(out), "--json", "한국어"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["label"] == "positive" and sum(one["probabilities"].values()) == pytest.approx(1)
    # A file without labels gives what the scored one gave.
    text = (root / "data/nsmc/ratings_test.txt").read_text()
    (tmp_path / "unlabelled.tsv").write_text("\n".join(line.rsplit("\t", 1)[0] for line in text.splitlines()) + "\n")
    assert main(["predict", "--model", str(out), "--file", str(tmp_path / "unlabelled.tsv")]) == 0
    assert capsys.readouterr().out == (out / "predictions.tsv").read_text()

    # What is there is not done again, and another way of training does not get mixed into it.
    before = (out / "seeds/1/results.json").stat().st_mtime_ns
    assert run(root, "nsmc", out, "--epochs", "8", seeds=(1, 2)).metrics == results.metrics
    assert (out / "seeds/1/results.json").stat().st_mtime_ns == before
    arguments = ["finetune", "--task", "nsmc", "--model", str(root / "export"), "--data", str(root / "data/nsmc"),
                 "--out", str(out), *QUICK]  # fmt: skip
    assert "has another fine-tuning (training.epochs: 8 -> 2): choose another" in refusal(capsys, arguments)


@pytest.mark.slow
def test_an_interrupted_seed_ends_as_an_undisturbed_one(root, tmp_path, monkeypatch):
    """Asked to stop between two evaluations, while accumulating and with dropout."""
    how = ["--gradient_accumulation_steps", "2", "--dropout", "0.1"]
    straight = run(root, "nsmc", tmp_path / "straight", *how)
    real, steps, interruption = one_seed.make_batch, [], Interruption(None)

    def make_batch(*arguments):
        steps.append(1)
        interruption.requested = len(steps) >= 2
        return real(*arguments)

    monkeypatch.setattr(one_seed, "make_batch", make_batch)
    with pytest.raises(Preempted, match="saved at step 3 of 8"):
        run(root, "nsmc", tmp_path / "again", *how, interruption=interruption)
    monkeypatch.undo()
    again = run(root, "nsmc", tmp_path / "again", *how)
    for name in ("scores", "history", "chosen_step"):
        assert getattr(again.seeds[0], name) == getattr(straight.seeds[0], name)
    for name in ("model.safetensors", "predictions.tsv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert records_of(tmp_path / "again") == records_of(tmp_path / "straight")
    assert not (tmp_path / "again/checkpoints").exists()


# One of two processes is asked to stop in its third step.
STOPS = """
from electra_flax.finetuning import seed
from electra_flax.runtime.flags import parse
from electra_flax.runtime.interruption import Interruption
real, steps, found = seed.make_batch, [], []
init = Interruption.__init__
def noted(self, host):
    init(self, host)
    found.append(self)
Interruption.__init__ = noted
def make_batch(*arguments):
    steps.append(1)
    if len(steps) == 2 and "1" in sys.argv[-1]:
        found[0].requested = True
    return real(*arguments)
seed.make_batch = make_batch
"""


@pytest.mark.slow
def test_two_processes_are_one(root, tmp_path, google_storage, monkeypatch):
    """Data parallel over two hosts, of which one is asked to stop; they end as one process would. Out is a bucket."""
    for name, value in google_storage.items():
        monkeypatch.setenv(name, value)
    straight = run(root, "nsmc", tmp_path / "straight")
    arguments = ["finetune", "--task", "nsmc", "--model", str(root / "export"), "--data", str(root / "data/nsmc"),
                 "--preset", "koelectra", "--out", "gs://bucket/tuned", *QUICK]  # fmt: skip
    # Where one finds its programs and the other compiles them, they meet too late.
    apart = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for process in start_pair(arguments, before=STOPS, **apart):
        code, error = end(process)
        assert code == Preempted.exit_code and "saved at step 3 of 8" in error
    for number, process in enumerate(start_pair(arguments, **apart)):
        said, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        assert ("NSMC: accuracy" in said) == (number == 0), "process 0 speaks for all"
    work = Workdir("gs://bucket/tuned").pull()
    pair = json.loads((work.folder / "results.json").read_bytes())
    single = asdict(straight)
    assert pair["metrics"] == single["metrics"]
    losses = [[found["loss"] for found in one["seeds"][0]["history"]] for one in (pair, single)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert (work.folder / "predictions.tsv").read_bytes() == (tmp_path / "straight/predictions.tsv").read_bytes()


@pytest.mark.slow
def test_accumulated_slices_are_one_batch(root, tmp_path):
    """Without dropout, tags and their number differing from row to row."""
    losses = [
        run(root, "naver-ner", tmp_path / name, "--dropout", "0", "--gradient_accumulation_steps", slices).seeds[0]
        for name, slices in (("one", "1"), ("two", "2"))
    ]
    for one, two in zip(losses[0].history, losses[1].history, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.slow
def test_patience_ends_a_run_and_the_protocol_is_said(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run(root, "nsmc", Path("out"), "--epochs", "30", "--patience", "2", published_protocol=True)
    (seed,) = results.seeds
    values = [one["accuracy"] for one in seed.history]
    assert len(values) < 30 and len(values) - 1 - int(np.argmax(values)) == 2
    assert results.published_protocol and results.chosen_by == "the scored examples themselves"
    assert seed.scores["accuracy"] == max(values)


@pytest.mark.parametrize(("evaluations", "expected"), [(0, [4, 8]), (3, [3, 5, 8]), (50, list(range(1, 9)))])
def test_dev_is_scored_evenly_and_never_before_the_first_step(evaluations, expected):
    how = ["--epochs", "2", "--batch_size", "16", "--evaluations", str(evaluations)]
    sizes = load_config(Path(__file__).parents[1] / "configs/koelectra_small_v3.yaml").model
    training = load_training("nsmc", load_task("nsmc"), "koelectra", sizes, how)
    data = SimpleNamespace(train=SimpleNamespace(rows=[None] * 58))
    network, steps = SimpleNamespace(mesh=None), SimpleNamespace(shapes=None)
    shared = one_seed.Shared(load_task("nsmc"), training, data, network, steps)
    learner = one_seed.Seed(shared, {}, 0, None)
    assert [step for step in range(9) if learner.evaluates(step)] == expected
    # Notes of an older version say nothing of an evaluation.
    learner.restore({"history": [{"step": 4, "accuracy": 0.5}], "losses": []})
    assert learner.was_evaluated(4) and not learner.was_evaluated(5)


def test_layers_learn_at_their_own_rates():
    params = {"classifier": {"kernel": 1.0}, "electra": {
        "embeddings": {"word_embeddings": {"embedding": 1.0}}, "embeddings_project": {"bias": 1.0},
        "encoder": {"layer": {str(i): {"output": {"dense": {"bias": 1.0}}} for i in range(12)}},
    }}  # fmt: skip
    for below_top, top, table in ((1, 0.8, 0.8**13), (2, 0.8**2, 0.8**14)):  # the paper's, the original's
        scale = scale_by_layer(0.8, 12, below_top)
        found, _ = scale.update(params, scale.init(params))
        layers = found["electra"]["encoder"]["layer"]
        assert found["classifier"]["kernel"] == 1.0
        assert layers["11"]["output"]["dense"]["bias"] == pytest.approx(top)
        assert layers["0"]["output"]["dense"]["bias"] == pytest.approx(top * 0.8**11)
        assert found["electra"]["embeddings"]["word_embeddings"]["embedding"] == pytest.approx(table)
        assert found["electra"]["embeddings_project"]["bias"] == pytest.approx(table)


def test_koelectras_preset_moves_as_torchs_adamw():
    torch = pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
    sizes = load_config(Path(__file__).parents[1] / "configs/koelectra_small_v3.yaml")
    how = load_training("nsmc", load_task("nsmc"), "koelectra", sizes.model, ["--weight_decay", "0.01"])
    rng = np.random.default_rng(0)
    ours = {"classifier": {"kernel": rng.normal(size=(4, 3)).astype(np.float32)}}
    theirs = torch.nn.Parameter(torch.tensor(ours["classifier"]["kernel"]))
    adamw = torch.optim.AdamW([theirs], how.learning_rate, eps=how.epsilon, weight_decay=how.weight_decay)
    decay = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: (10 - step) / 10)
    optimizer = optimizer_of(how, sizes, num_steps=10)
    state = optimizer.init(ours)
    for size in (0.01, 30.0, 1e-6):  # the second is clipped
        grads = {"classifier": {"kernel": size * rng.normal(size=(4, 3)).astype(np.float32)}}
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(grads["classifier"]["kernel"])
        torch.nn.utils.clip_grad_norm_([theirs], how.max_grad_norm)
        adamw.step()
        decay.step()
        np.testing.assert_allclose(ours["classifier"]["kernel"], theirs.detach().numpy(), rtol=0, atol=2e-7)


def test_no_answer_is_chosen_on_the_examples_that_choose():
    from electra_flax.finetuning.encoding import Answer
    from electra_flax.finetuning.examples import QuestionExample

    task = load_task("squad2")
    answer = [Answer("서울", 1.0, 0)]
    examples = [QuestionExample(str(i), "q", "서울", [("서울", 0)] if i % 2 else []) for i in range(20)]
    predictions = [Answered(answer, (-2.0 if i % 2 else 1.0) + 0.01 * i) for i in range(20)]
    threshold = best_null_threshold(task, examples, predictions)
    assert scores(task, [], examples, predictions, threshold) == {"answer_f1": 1.0, "exact_match": 1.0}
    assert scores(task, [], examples, predictions)["exact_match"] == 0.5
    assert best_null_threshold(task, examples[1::2], predictions[1::2]) == float("inf")


def test_several_folders_and_words_that_no_option_takes(capsys):
    given = ["scoreboard", "--model", "x", "y", "--data", "a", "nsmc=b", "--data", "c"]
    args = parse(parser(), given)
    assert (args.model, args.data) == (("x", "y"), ("a", "nsmc=b", "c"))
    with pytest.raises(SystemExit):
        main(["finetune", "word", "--task", "nsmc", "--model", "x", "--data", "a", "--out", "b"])
    assert "error: unrecognized arguments: word" in capsys.readouterr().err


@pytest.mark.slow
def test_scoreboard(root, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["scoreboard", "--model", str(root / "export"), "--data", str(root / "data"), "--tasks", "nsmc", *QUICK]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "steps of training; fewer than 50 are rarely enough" in caplog.text
    assert "**NSMC**<br/>(acc)" in table and "| KoELECTRA-Base-v3 (published) | 90.63 |" in table
    assert "best of all checkpoints on the scored examples" in table and "Naver NER" not in table
    rows = json.loads((tmp_path / "scoreboard/table.json").read_text())
    mean = rows[str(root / "export")]["nsmc"]["metrics"]["accuracy"]["mean"]
    assert f"| {100 * mean:.2f} |" in table
    assert (tmp_path / "scoreboard/table.png").read_bytes().startswith(b"\x89PNG")
    assert "--tasks kornli: its files" in refusal(capsys, [*arguments, "--tasks", "kornli"])
    assert "no such folder" in refusal(capsys, ["scoreboard", "--model", "x", "--data", str(tmp_path / "none")])
    assert "no files of a task" in refusal(capsys, ["scoreboard", "--model", "x", "--data", str(tmp_path)])

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(("국어 짧은\n").encode())))
    folder = tmp_path / "names"
    run(root, "naver-ner", folder, "--epochs", "6")
    capsys.readouterr()
    assert main(["predict", "--model", str(folder)]) == 0
    assert capsys.readouterr().out == "국어 (LOC)\t국어 짧은\n"
    assert "has no finetune.json: expected a folder of electra-flax finetune" in refusal(
        capsys, ["predict", "--model", str(root / "export"), "x"]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--model": "export/generator"}, "a generator; expected a discriminator"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--data": "data/korsts"}, "no training file of NSMC: expected ratings_train.txt"),
        ({"--task": "paws"}, "no training file of PAWS"),
        ({"--task": "own.txt"}, "--task own.txt: unknown task"),
        ({"--max_seq_length": "100"}, "the model has only 64 positions: add --max_seq_length 64"),
        ({"--batch_size": "12"}, "must be a multiple of 8"),
        ({"--preset": "mine"}, "--preset mine: expected one of koelectra, paper, original"),
        ({"--lr": "1"}, "--lr: unknown field"),
        ({"--dev_fraction": "0.001"}, "dev_fraction=0.001 of its 64 training examples are 0"),
        ({"--dev_fraction": "0.999"}, "dev_fraction=0.999 of its 64 training examples are 64: lower dev_fraction"),
        ({"--task": "korsts", "--data": "data/nsmc"}, "no training file of KorSTS"),
    ],
)  # fmt: skip
def test_what_is_refused(root, tmp_path, capsys, changes, expected):
    places = {"--task": "nsmc", "--model": "export", "--data": "data/nsmc", "--out": str(tmp_path / "out")} | changes
    for name in ("--model", "--data"):
        places[name] = str(root / places[name])
    arguments = ["finetune", *QUICK, *(part for item in places.items() for part in item)]
    assert expected in refusal(capsys, arguments)
    assert not (tmp_path / "out").exists(), "the next attempt would be refused as another fine-tuning"


def test_a_model_is_not_replaced_by_what_is_made_of_it(root, tmp_path):
    with pytest.raises(UserError, match="discriminator: already has a config.json"):
        run(root, "nsmc", root / "export/discriminator")
    for name in ("run.json", "config.yaml"):  # of pretraining
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="already has a config.yaml"):
        run(root, "nsmc", tmp_path)
