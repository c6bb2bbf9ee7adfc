"""The page about a run, and what doctor finds in runs that are broken on purpose."""

import html
import json
import math
import re
import shutil
import time
from dataclasses import replace

import pytest
from run_tools import pretrain, refusal

from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.data.manifest import Manifest
from electra_flax.reports.doctor import diagnose, diagnose_config
from electra_flax.reports.page import _section, _summary
from electra_flax.reports.references import beside, read_reference
from electra_flax.storage.workdir import Workdir
from electra_flax.training.charts import draw, learning_panels
from electra_flax.training.history import History, Subject

BROKEN = [
    "--optimizer.learning_rate", "10", "--optimizer.warmup_steps", "0", "--optimizer.max_grad_norm", "1e9",
    "--generator.embedding_sharing", "separate", "--model.initializer_range", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(whole, tmp_path_factory):
    """Shards, and a run of six steps."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("report"), dirs_exist_ok=True)


@pytest.mark.slow
def test_doctor_names_what_is_broken_in_a_real_run(root, capsys):
    assert main(pretrain(root, "broken", *BROKEN)) == 0
    assert main(["doctor", "--workdir", str(root / "broken"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    problems = " | ".join(finding["problem"] for finding in found)
    assert "embedding_sharing=separate" in problems
    assert "optimizer.learning_rate=10 is unusual for hidden size 32 and batch size 16" in problems
    first = re.search(r"the first generator loss is ([\d.]+); random guessing gives 6.40", problems)
    assert first and float(first[1]) > 7
    assert all(finding["advice"] for finding in found)


def test_doctor_looks_at_a_configuration_before_the_first_step(root, capsys):
    shards = ["--config", "configs/koelectra_small_v3.yaml", "--data", str(root / "shards")]
    assert main(["doctor", *shards, "--optimizer.learning_rate", "0.1"]) == 1
    expected = "is unusual for hidden size 256 and batch size 512: published models of hidden size 256 use 0.0005"
    assert expected in capsys.readouterr().out
    assert main(["doctor", *shards]) == 1
    said = capsys.readouterr().out
    assert re.search(r"\d+\.\d% of the pieces in the shards are \[UNK\]", said)
    assert "model.vocab_size=35000" in said and "data.max_seq_length=512, but" in said, "all at once"
    assert main(["doctor", *shards[:2]]) == 0
    assert "no findings" in capsys.readouterr().out


PRESETS = ("koelectra_base_v1", "koelectra_small_v1", "electra_base", "electra_small", "electra_large",
           "koelectra_base_v3", "electra_small_pp", "demo", "tiny")  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_doctor_finds_nothing_wrong_with_the_presets(preset):
    assert not diagnose_config(load_config(f"configs/{preset}.yaml"))


OTHER = ["--training.batch_size", "100", "--model.vocab_size", "700", "--mesh.tensor", "3"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["--data", "nowhere"], ["nowhere: no such folder"]),
        (["--training.batch_size", "100"], ["training.batch_size=100 must be a multiple of 8 = 8 devices",
                                            "belongs to another run (training.batch_size: 16 -> 100)"]),
        (OTHER, ["mesh.tensor=3 does not fit 8 devices", "model.vocab_size=700, but", "model.vocab_size: 600 -> 700"]),
        (["--data.max_seq_length", "64", "--long-data", "x"], ["expected no --long-data", "have 32 tokens per example",
                                                               "data.max_seq_length: 32 -> 64"]),
        (["--long_phase.steps", "2", "--long_phase.batch_size", "12", "--long_phase.max_seq_length", "64"], [
            "expected --long-data too", "long phase: training.batch_size=12 must be", "long_phase.steps: 0 -> 2"]),
        (["--model.initializer_range", "1", "--optimizer.learning_rate", "1"], ["initializer_range: 0.02 -> 1.0"]),
    ],
)  # fmt: skip
def test_doctor_names_all_at_once_what_pretrain_refuses(root, capsys, given, expected):
    """In the words of pretrain, which names them one at a time; nothing is written."""
    arguments = ["--config", str(root / "tiny.yaml"), "--data", str(root / "shards"),
                 "--workdir", str(root / "run"), *given]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in (root / "run").rglob("*")}
    capsys.readouterr()
    main(["doctor", *arguments, "--json"])
    assert before == {path: path.stat().st_mtime_ns for path in (root / "run").rglob("*")}
    found = [each["problem"] for each in json.loads(capsys.readouterr().out) if "will not start" in each["advice"]]
    assert len(found) == len(expected), found
    assert all(part in problem for part, problem in zip(expected, found, strict=True)), found
    if expected:
        assert found[0] in refusal(capsys, ["pretrain", *arguments])


def test_shards_without_held_out_examples_are_found(root):
    config, manifest = load_config(root / "tiny.yaml"), Manifest.read(root / "shards")
    bare = replace(manifest, splits={**manifest.splits, "validation": []})
    new = [found.problem for found in diagnose_config(config, bare) if found not in diagnose_config(config, manifest)]
    assert new == ["the shards have no validation split: nothing can be evaluated"]


def test_a_discriminator_at_the_base_rate_is_the_first_finding():
    config = load_config("configs/demo.yaml", ["--optimizer.learning_rate", "0.5"])
    numbers = {"discriminator_auc": 0.51, "discriminator_recall": 0.0, "discriminator_precision": 0.0}
    train = [{"step": step, "split": "train", **HEALTHY, **numbers} for step in range(20, 401, 20)]
    held_out = [{"step": 400, "split": "validation", **numbers, "discriminator_accuracy": 0.9, "replaced_rate": 0.1}]
    first, second = diagnose(History("run", None, config, Subject.of(config), train, held_out))
    assert "is at the base rate" in first.problem
    assert "accuracy 0.900 (the share of original tokens is 0.900)" in first.problem
    assert "for hidden size 128 and batch size 64" in second.problem


HEALTHY = {
    "generator_loss": 3.0, "discriminator_auc": 0.9, "discriminator_precision": 0.7, "discriminator_recall": 0.4,
    "skipped_steps": 0, "input_wait": 0.005, "steps_per_sec": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, None),
        ({"generator_loss": 10.3}, r"loss is 10\.30 after 50,000 steps, close to random guessing \(10\.46\)"),
        ({"discriminator_precision": 0.0, "discriminator_recall": 0.0}, "flags nothing"),
        (
            {"discriminator_auc": 0.505, "discriminator_recall": 0.0, "discriminator_accuracy": 0.87,
             "replaced_rate": 0.13},
            r"at the base rate: .* AUC 0\.5. .* recall 0\.000, accuracy 0\.870 \(.* 0\.870\), after 50,000 steps",
        ),
        ({"skipped_steps": 1}, "500 of 50,000 steps were skipped: loss or gradient was not finite"),
        ({"input_wait": 0.31}, "wait for input 31% of the time"),
        ({"steps_per_sec": 0.2}, r"30 minutes of work are lost"),
    ],
)  # fmt: skip
def test_doctor_names_what_the_numbers_of_a_long_run_show(root, numbers, expected):
    config = load_config("configs/koelectra_base_v3.yaml", ["--checkpoint.every_minutes", "30"])
    records = [{"step": step, "split": "train", **HEALTHY, **numbers} for step in range(100, 50_001, 100)]
    if "steps_per_sec" not in numbers:
        config = replace(config, checkpoint=replace(config.checkpoint, every_minutes=10))
    found = diagnose(History("run", root, config, Subject.of(config), records, []))
    assert len(found) == (expected is not None), found
    assert expected is None or re.search(expected, found[0].problem)


KNOWING = {
    "discriminator_gain": 0.05, "discriminator_auc": 0.75, "discriminator_average_precision_over_rate": 2.5,
    "discriminator_recall": 0.3, "state_spread": 0.8, "sequence_cosine": 0.85, "probe_accuracy": 0.6,
    "probe_base_rate": 0.52,
}  # fmt: skip
IGNORANT = {
    "discriminator_gain": 0.01, "discriminator_auc": 0.56, "discriminator_average_precision_over_rate": 1.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "numbers", "expected"),
    [
        (60, {}, None),
        (60, {**IGNORANT, "state_spread": 0.002},
         r"nearly the same: the standard deviation .* 0\.002 \(0\.1 or more is healthy\), after 60 steps"),
        (160, {**IGNORANT, "state_spread": 0.04, "sequence_cosine": 0.9999},
         r"0\.04 \(.*the mean cosine of two texts is 0\.9999 "),
        (60, {**IGNORANT, "state_spread": math.nan}, "nearly the same"),
        (60, {"sequence_cosine": 0.9999}, None),  # the discriminator tells tokens apart all the same
        (2999, IGNORANT, None),  # a plateau
        (3000, IGNORANT, r"has learned little: .* 0\.010 .*, AUC 0\.56 \(.*, average precision 1\.1 times .* 3,000"),
        (3000, {"discriminator_gain": 0.01}, r"has learned little: it gains 0\.010 nats/token [^,]*, after"),
        (3000, {**IGNORANT, "discriminator_auc": 0.5}, "is at the base rate"),
        (2999, {"probe_accuracy": 0.53}, None),
        (3000, {"probe_accuracy": 0.53}, r"the probe is right on 53\.0% .* most frequent label on 52\.0%"),
    ],
)  # fmt: skip
def test_doctor_reads_the_health_of_a_run(step, numbers, expected):
    config = load_config("configs/tiny.yaml", ["--training.num_steps", "6000"])
    held_out = [{"step": at, "split": "validation", **KNOWING, **(numbers if at else {})} for at in (0, step)]
    found = diagnose(History("run", None, config, Subject.of(config), [], held_out))
    assert len(found) == (expected is not None), found
    assert expected is None or re.search(expected, found[0].problem), found
    old = [{"step": step, "split": "validation", "discriminator_auc": 0.75, "discriminator_recall": 0.3}]
    assert not diagnose(History("run", None, config, Subject.of(config), [], old)), "numbers that it has not"


def test_charts_are_of_numbers_that_are_there():
    config = load_config("configs/tiny.yaml")
    of_old = History("old", None, config, Subject.of(config), [{"step": 1, "generator_loss": 6.0}], [])
    of_new = replace(of_old, validation=[{"step": 1, **KNOWING}])
    assert [panel.metric for panel in learning_panels([of_old])] == ["generator_loss"]
    shown = [panel.metric for panel in learning_panels([of_old, of_new])]
    assert {"discriminator_gain", "state_spread", "sequence_cosine", "probe_accuracy"} < {*shown}
    assert draw([replace(of_old, train=[])], []).startswith(b"\x89PNG")


def test_the_first_loss_is_not_that_of_guessing():
    config = load_config("configs/koelectra_base_v3.yaml")
    first = {"step": 1, "split": "train", "generator_loss": math.log(35_000) + 3, "discriminator_loss": math.log(2) + 1}
    problems = [finding.problem for finding in diagnose(History("run", None, config, Subject.of(config), [first], []))]
    assert [problem.split(" loss is ")[0] for problem in problems] == ["the first generator", "the first discriminator"]


@pytest.mark.parametrize(("first_values", "by", "is_found"), [
    ("original", -1.3, True), ("neighbours", -1.3, False), ("neighbours", 1.3, True),
])  # fmt: skip
def test_first_values_that_know_frequencies_may_begin_below_guessing(first_values, by, is_found):
    config = load_config("configs/tiny.yaml", [f"--training.first_values={first_values}"])
    first = {"step": 0, "split": "validation", "generator_loss": math.log(4000) + by}
    assert bool(diagnose(History("run", None, config, Subject.of(config), [], [first]))) == is_found


def test_weights_that_have_learned_may_begin_below_guessing():
    config = load_config("configs/demo_continue.yaml")
    first = {"step": 0, "split": "validation", "generator_loss": 2.7, "discriminator_loss": 0.3}
    run = History("run", None, config, Subject.of(config), [], [first])
    assert len(diagnose(run)) == 2
    began = {"event": "start", "step": 0, "time": 0.0, "init_from": "tiny-ko"}
    assert not diagnose(replace(run, events=[began]))


def test_the_page_holds_everything_itself(root, capsys):
    config = shutil.copytree(root / "run", root / "<b>&hot") / "config.yaml"
    config.write_text(re.sub(r"\blearning_rate: .*", "learning_rate: 10.0", config.read_text()))
    page = root / "pages/both.html"
    workdirs = ["--workdir", str(root / "<b>&hot"), "--workdir", str(root / "<b>&hot")]
    assert main(["report", *workdirs, "--out", str(page)]) == 0
    written = capsys.readouterr().out.split()
    assert [path.rsplit("/", 1)[1] for path in written] == ["both.html", "both-learning.png", "both-speed.png"]
    text = page.read_text()
    assert "<b>&" not in text, "a name is not escaped"
    assert not re.search(r'(src|href)="(?!data:)', text), "the page loads something from elsewhere"
    name, place = html.escape("<b>&hot"), html.escape(str(root / "<b>&hot"))
    heads = f"<th>{name} (1)</th><th>{name} (2)</th>"
    for expected in (heads, f">{place}</p>", "learning_rate=10", "Checkpoints written: ", "; kept: ",
                     "<td>done</td>", "<h3>Examples</h3>", 'class="example"', "% replaced"):  # fmt: skip
        assert expected in text
    shares = [float(share) for share in re.findall(r'class="cell"[^>]*>([\d.]+)%', text)]
    assert len(shares) == 8 and abs(sum(shares[:4]) - 100) < 0.05
    assert (root / "pages/both-speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("last", "ago", "state"),
    [
        ("stop", 0, "stopped at step 47 of 1,500,000"),
        ("save", 3600, "stopped at step 40 of 1,500,000"),  # killed: no watchdog lets a run be silent for so long
        ("save", 60, "at step 40 of 1,500,000, 138 days"),
        ("start", 0, "at step 40 of 1,500,000, 138 days"),  # it goes on
    ],
)
def test_only_a_run_that_goes_on_has_time_to_go(root, last, ago, state):
    config = load_config("configs/koelectra_base_v3.yaml")
    then = time.time() - ago
    train = [{"step": 40, "split": "train", "time": then, "steps_per_sec": 0.125}]
    run = History(
        "a/run",
        None,
        config,
        Subject.of(config),
        train,
        [],
        [{"event": last, "step": 47, "time": then, "devices": "8 x cpu"}],
    )
    cells = _summary([run, replace(run, name="b/run")])["state"]
    assert cells[0] == cells[1] and cells[0].startswith(state)
    assert "to go" not in cells[0] or not state.startswith("stopped")


@pytest.mark.parametrize(
    ("field", "part"), [("generator.uniform_generator=true", "generator"),
                        ("objective.kind=masked_tokens", "discriminator")],
)  # fmt: skip
def test_the_page_names_the_part_that_a_run_lacks(root, field, part):
    config = load_config(root / "tiny.yaml", [f"--{field}"])
    train = [{"step": 1, "split": "train", "time": 0.0, "steps_per_sec": 1.0}]
    section = _section(History("run", Workdir(root / "run"), config, Subject.of(config), train, [], []), "run")
    assert section["not_shown"] == f"this run has no {part}"
    assert section["has_discriminator"] == (part == "generator")


def test_what_report_and_doctor_refuse(root, tmp_path, capsys):
    for arguments, expected in (
        (["report", "--workdir", str(tmp_path)], "not the workdir of a run"),
        (["report", "--workdir", str(root / "run"), "--out", "/proc/page.html"], "--out /proc/page.html: cannot be"),
        (["doctor"], "--workdir DIR) or a configuration (--config NAME|YAML)"),
        (["doctor", "--workdir", str(tmp_path)], "not the workdir of a run"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and expected in error[0]


def test_a_reference_is_drawn_beside_a_run(root, capsys, tmp_path):
    page = ["report", "--workdir", str(root / "run"), "--out", str(tmp_path / "report.html")]
    assert main(page) == 0
    alone = (tmp_path / "report-learning.png").read_bytes()
    assert main([*page, "--reference", "tiny_ko"]) == 0
    said = (tmp_path / "report.html").read_text()
    assert "Compared with the reference tiny_ko" in said and "Not compared yet: no step was evaluated in both." in said
    assert (tmp_path / "report-learning.png").read_bytes() != alone
    assert "--reference tiny: expected one of demo, demo_continue, tiny_ko" in refusal(
        capsys, [*page, "--reference", "tiny"]
    )


def test_a_run_is_set_beside_the_reference_at_the_last_step_of_both(root):
    reference = read_reference("tiny_ko")
    assert reference.validation and reference.train and reference.config == load_config("configs/tiny_ko.yaml")
    step = reference.validation[2]["step"]
    mine = [{**reference.validation[1]}, {**reference.validation[2], "generator_loss": 9.0}, {"step": 1, "loss": 3.0}]
    run = replace(reference, name="mine", validation=mine)
    found = beside(run, reference)
    assert found["step"] == (f"{step:,}",) * 2
    assert found["Generator loss"] == ("9.000", f"{reference.validation[2]['generator_loss']:.3f}")
    assert beside(replace(run, validation=[]), reference) == {}


def test_padding_is_found_where_rows_are_not_packed(root):
    config, manifest = load_config(root / "tiny.yaml"), Manifest.read(root / "shards")
    (shard,) = manifest.splits["train"]
    half = replace(manifest, splits={**manifest.splits, "train": [replace(shard, tokens=16 * shard.examples)]})
    problems = [found.problem for found in diagnose_config(config, half)]
    assert "50% of the rows of the shards is padding, which takes as long as tokens do" in problems
    packed = replace(config, data=replace(config.data, packing="best_fit"))
    assert not any("padding" in found.problem for found in diagnose_config(packed, half))
    full = replace(manifest, splits={**manifest.splits, "train": [replace(shard, tokens=30 * shard.examples)]})
    assert not any("padding" in found.problem for found in diagnose_config(config, full))
