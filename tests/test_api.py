"""What programs call, against transformers' answers; the documents' snippets and the notebook, run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from finetune_tools import write_sentiment
from run_tools import records, refusal
from safetensors.numpy import load_file, save_file

import electra_flax
from electra_flax import shipped
from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config, resolved
from electra_flax.errors import UserError
from electra_flax.planning.kernel_schedule import LIBRARY_ENVIRONMENT
from electra_flax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
TINY_KO = shipped.FOLDER / "tiny-ko"
SENTENCES = [
    "나는 오늘 밥을 먹었다.",
    "봄",
    "새벽 시장은 도시가 아직 잠들어 있을 때 가장 먼저 깨어난다. 상인들은 (어둠 속에서) 불을 켜고, 갓 들어온 채소와"
    " 생선을 늘어놓는다.",
    "ELECTRA를 공유합니다! 漢字 ㅋㅋ 😀",
]


# --------------------------------------------------------------------------------------------------------- the package


def test_the_package_names_what_its_modules_hold():
    """For people who write, in TYPE_CHECKING; for Python, in the table; the list of both."""
    tree = ast.parse((ROOT / "electra_flax/__init__.py").read_text())
    typed = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    typed = {name: module for name, module in typed.items() if module.startswith("electra_flax.")}
    assert sorted(typed) == sorted(electra_flax._MODULES) == sorted(electra_flax.__all__)
    for name, module in typed.items():
        assert module == f"electra_flax.{electra_flax._MODULES[name]}"
        assert getattr(electra_flax, name) is getattr(sys.modules[module], name)
        assert not (ROOT / "electra_flax" / name).exists(), f"{name}: a room of that name would take its place"
    assert set(electra_flax.__all__) <= set(dir(electra_flax))
    with pytest.raises(AttributeError, match="nothing"):
        electra_flax.nothing  # noqa: B018


TYPED = """
import electra_flax
reveal_type(electra_flax.load("tiny-ko").embed(["a"]))
reveal_type(electra_flax.pretrain("a", "b", "c", overrides={"training.num_steps": 3}).held_out)
electra_flax.pretrian
electra_flax.finetune("nsmc", "models", "data", "out", seeds="0")
"""


@pytest.mark.slow
def test_types_reach_those_who_call_it(tmp_path):
    (tmp_path / "theirs.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "theirs.py"]
    said = subprocess.run(command, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True,
                          text=True, check=False).stdout  # fmt: skip
    assert re.search(r"theirs.py:3: .*numpy.ndarray", said) and 'theirs.py:4: note: Revealed type is "' in said
    assert 'theirs.py:5: error: Module has no attribute "pretrian"' in said
    assert 'theirs.py:6: error: Argument "seeds"' in said and said.count("error:") == 2


# ----------------------------------------------------------------------------------------------------------- sentences


@pytest.fixture(scope="module")
def tiny_ko():
    return electra_flax.load("tiny-ko")


def theirs(part, name):
    """Tokenizer and model of transformers, in PyTorch."""
    pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
    import transformers

    folder = TINY_KO / part
    model = getattr(transformers, name).from_pretrained(folder, dtype="float32").eval()
    return transformers.ElectraTokenizerFast.from_pretrained(folder), model


def test_score_masks_a_token_at_a_time_as_transformers_would(capsys):
    tokenizer, model = theirs("generator", "ElectraForMaskedLM")
    import torch

    assert main(["score", "--model", "tiny-ko", "--json", *SENTENCES]) == 0
    found = json.loads(capsys.readouterr().out)
    for sentence, ours in zip(SENTENCES, found, strict=True):
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        places = torch.arange(1, ids.shape[1] - 1)
        rows = ids.repeat(len(places), 1)
        rows[torch.arange(len(places)), places] = tokenizer.mask_token_id
        with torch.no_grad():
            chosen = model(rows).logits[torch.arange(len(places)), places].log_softmax(-1)
        expected = chosen[torch.arange(len(places)), ids[0, places]].numpy()
        np.testing.assert_allclose([piece["log_likelihood"] for piece in ours["pieces"]], expected, atol=1e-4)
        assert ours["log_likelihood"] == pytest.approx(expected.sum(), abs=1e-3)
        assert [piece["token"] for piece in ours["pieces"]] == tokenizer.tokenize(sentence)


def test_embed_is_the_mean_of_transformers_states_or_that_of_cls(tiny_ko):
    tokenizer, model = theirs("discriminator", "ElectraModel")
    mean, cls = tiny_ko.embed(SENTENCES), tiny_ko.embed(SENTENCES, pooling="cls")
    assert mean.dtype == cls.dtype == np.float32 and mean.shape == (len(SENTENCES), 128)
    for number, sentence in enumerate(SENTENCES):
        states = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].detach().numpy()
        np.testing.assert_allclose(mean[number], states[1:-1].mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(cls[number], states[0], atol=1e-4)


def test_a_long_list_is_answered_in_its_order(tiny_ko):
    """Of several lengths, more rows than a batch holds."""
    many = [*SENTENCES, SENTENCES[3]] * 60
    alone = {text: tiny_ko.detect([text])[0] for text in SENTENCES}
    for text, found in zip(many, tiny_ko.detect(many), strict=True):
        assert (found.text, found.tokens) == (text, alone[text].tokens)
        np.testing.assert_allclose(found.probabilities, alone[text].probabilities, atol=1e-5)
    assert found.probabilities.dtype == np.float32 and found.offsets[0] == (found.pieces[0].start, found.pieces[0].end)
    assert tiny_ko.detect([]) == tiny_ko.score([]) == [] and tiny_ko.embed([]).shape == (0, 128)


def test_words_are_the_tokenizers(tiny_ko):
    (found,) = tiny_ko.detect(["나는 (오늘) 밥을!! 먹었다."])
    assert [word.text for word in found.words] == ["나는", "(", "오늘", ")", "밥을", "!", "!", "먹었다", "."]
    for word in found.words:
        inside = [piece for piece in found.pieces if word.start <= piece.start and piece.end <= word.end]
        assert found.text[word.start : word.end] == word.text
        assert word.probability == max(piece.probability for piece in inside)


def test_what_cannot_be_asked_is_one_line(tiny_ko, tmp_path):
    shutil.copytree(TINY_KO / "discriminator", tmp_path / "encoder")
    path = tmp_path / "encoder/model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if name.startswith("electra.")}
    save_file(kept, path, {"format": "pt"})
    encoder, alone = electra_flax.load(tmp_path / "encoder"), electra_flax.load(TINY_KO / "discriminator")
    np.testing.assert_array_equal(encoder.embed(["봄"]), tiny_ko.embed(["봄"]))
    for ask, expected in (
        (lambda: electra_flax.load("nowhere"), "nowhere: no such folder"),
        (lambda: alone.fill(["봄이 [MASK]."]), "a discriminator; expected a generator"),
        (lambda: alone.score(["봄"]), "a discriminator; expected a generator"),
        (lambda: encoder.detect(["봄"]), "has neither head of ELECTRA's pretraining"),
        (lambda: tiny_ko.detect("봄이 왔다"), 'expected a list of texts: ["..."]'),
        (lambda: tiny_ko.detect(["봄", None]), "text 1 of the list: None, expected a str"),
        (lambda: tiny_ko.fill(["봄"]), "has no [MASK]"),
        (lambda: tiny_ko.fill(["[MASK]"], top=0), "top=0: expected 1 or more"),
        (lambda: tiny_ko.score(["봄이 [MASK]."]), "holds [MASK]"),
        (lambda: tiny_ko.embed([" "]), "has no words"),
        (lambda: tiny_ko.embed(["봄"], pooling="max"), "pooling=max: expected mean or cls"),
        (lambda: tiny_ko.embed(["밥 " * 200]), "more than the 128 positions"),
    ):
        with pytest.raises(UserError) as refused:
            ask()
        assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_score_prints_sums_means_and_tokens(capsys):
    assert main(["score", "--model", "tiny-ko", *SENTENCES[:2]]) == 0
    first, tokens, second, _ = capsys.readouterr().out.splitlines()
    total, mean = map(float, re.match(r"(-[\d.]+) \((-[\d.]+) per token\)  ", first).groups())
    parts = [float(part) for part in re.findall(r"-[\d.]+", tokens)]
    assert first.endswith(SENTENCES[0]) and second.endswith(SENTENCES[1]) and tokens.startswith("  나는 -")
    assert sum(parts) == pytest.approx(total, abs=0.05) and mean == pytest.approx(total / len(parts), abs=0.01)
    assert "a discriminator; expected a generator" in refusal(
        capsys, ["score", "--model", str(TINY_KO / "discriminator"), "봄"]
    )


# ---------------------------------------------------------------------------------------------------------------- runs


class Told(electra_flax.Callbacks):
    def __init__(self, ending=None, at=None):
        self.heard, self._ending, self._at = [], ending, at

    def _hear(self, *event):
        self.heard.append(event)
        if event[:2] == self._at:
            raise self._ending

    def on_metrics(self, step, metrics):
        self._hear("metrics", step, metrics)

    def on_evaluation(self, step, metrics):
        self._hear("evaluation", step, metrics)

    def on_save(self, step):
        self._hear("save", step)


def test_a_run_tells_what_it_writes_and_prints_nothing(copy, capsys):
    told, first = Told(), Told()
    capsys.readouterr()
    done = electra_flax.pretrain("tiny.yaml", copy / "shards", "new", callbacks=[first, told], progress=False)
    assert told.heard == first.heard and capsys.readouterr() == ("", "")
    assert (done.workdir, done.step) == ("new", 6)
    for kind, split in (("metrics", "train"), ("evaluation", "validation")):
        heard = {event[1]: event[2] for event in told.heard if event[0] == kind}
        written = records(copy, "new", split)
        assert heard.keys() == written.keys()
        for step, metrics in heard.items():
            assert metrics.items() >= {k: v for k, v in written[step].items() if k not in ("step", "split")}.items()
        assert written == records(copy, "run", split), "the command's run"
    assert done.held_out == heard[6] and [event[1] for event in told.heard if event[0] == "save"] == [3, 6]
    again = electra_flax.pretrain("tiny.yaml", "shards", "new", callbacks=(late := Told()), progress=False)
    assert again == done and not late.heard
    of_export = electra_flax.load("export").embed(["새벽 시장"])
    for place in ("run", "orbax:run", "hf:export", Path("export/discriminator")):
        np.testing.assert_allclose(electra_flax.load(place).embed(["새벽 시장"]), of_export, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_run_from_outside_is_raised_and_the_same_call_goes_on(copy, capsys, ending):
    with pytest.raises(ending):
        electra_flax.pretrain("tiny.yaml", "shards", "new", callbacks=Told(ending, ("metrics", 4)), progress=True)
    assert "step 3 train" in capsys.readouterr().err
    assert Checkpoints(copy / "new/checkpoints").steps == [3], "complete, though it was written behind the steps"
    told = Told()
    assert electra_flax.pretrain("tiny.yaml", "shards", "new", callbacks=told, progress=False).step == 6
    assert [event[1] for event in told.heard if event[0] == "metrics"] == [4, 5, 6]
    assert records(copy, "new", "train") == records(copy, "run", "train")


def test_fields_in_place_of_others():
    fields = {"optimizer.learning_rate": 1e-5, "checkpoint.keep_best": 0, "generator.untied_generator": True,
              "logging.wandb_project": None, "training.num_steps": 400}  # fmt: skip
    given = [part for name, value in fields.items() for part in (f"--{name}", json.dumps(value))]
    path = ROOT / "configs/demo.yaml"
    config = load_config(path)
    assert resolved(config, fields) == resolved(path, fields) == load_config(path, given) != config
    assert resolved(config) is config and resolved(config, fields).optimizer.learning_rate == 1e-5
    for wrong, expected in (
        ({"training.num_step": 20}, "--training.num_step: unknown field; did you mean training.num_steps"),
        ({"training.num_steps": 0}, "--training.num_steps=0: expected 1 to"),
    ):
        with pytest.raises(UserError, match=expected):
            resolved(config, wrong)


# ----------------------------------------------------------------------------------------------------------- documents


def snippets(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.M | re.S)


def run_snippets(*functions):
    """Those of docs/api.md that call them, as a program that has imported the package; return its names."""
    chosen = [each for each in snippets("api.md") if any(f".{name}(" in each for name in functions)]
    assert len(chosen) == len(functions)
    namespace = {"electra_flax": electra_flax}
    for snippet in chosen:
        exec(compile(snippet, "docs/api.md", "exec"), namespace)
    return namespace


def test_the_snippets_about_sentences_run(capsys):
    assert snippets("api.ko.md") == snippets("api.md") and len(snippets("api.md")) == 5
    assert run_snippets("detect", "fill")["vectors"].dtype == np.float32
    assert "(3, 128) float32" in capsys.readouterr().out


@pytest.mark.slow
def test_the_snippets_about_training_run(copy, capsys):
    shutil.copy("tiny.yaml", "my.yaml")
    shutil.copytree("export", "models")
    write_sentiment(copy / "nsmc")
    scores = run_snippets("pretrain", "finetune")["scores"]
    assert scores.task == "NSMC" and json.loads((copy / "tuned/results.json").read_text()) == asdict(scores)
    assert "NSMC" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="NOT CHECKED: the TPU compiler (extra tpu) is not installed")
def test_the_snippet_about_plans_runs(copy):
    shutil.copy("tiny.yaml", "my.yaml")
    before = {name: os.environ.get(name) for name in LIBRARY_ENVIRONMENT}
    plan = run_snippets("plan")["plan"]
    assert isinstance(plan, electra_flax.Plan) and plan.fits
    assert {name: os.environ.get(name) for name in LIBRARY_ENVIRONMENT} == before


NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
# As a notebook would, without one: its cells, in one namespace.
RUN = """
import json, sys
namespace = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
"""


def test_the_notebook_is_one_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and notebook.keys() == {
        "cells", "metadata", "nbformat", "nbformat_minor"}  # fmt: skip
    of_all = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        assert cell.keys() == (of_all if cell["cell_type"] == "markdown" else of_all | {"execution_count", "outputs"})
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """In a process of its own, on one device, as on a laptop."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN, str(NOTEBOOK)], cwd=NOTEBOOK.parent,
                          env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ten reviews 2 examples of" in done.stdout and re.search(r"^20 \d\.\d+$", done.stdout, re.M)
