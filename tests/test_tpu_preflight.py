"""What preflight and the settings say of prices, budgets, identities and of answers that are not what was expected."""

import json
from pathlib import Path

import pytest
from gcloud_tools import StandIn, settings
from tpu_api import FakeTpuApi

from electra_flax.config.loading import load_config, load_fields
from tpu import launch
from tpu.answers import Policy
from tpu.babysitter import Babysitter
from tpu.gcloud import GcloudError
from tpu.history import History, Machine
from tpu.preflight import _budget, preflight
from tpu.settings import Settings

ROOT = Path(__file__).parents[1]
DEMO = load_config(ROOT / "configs/demo.yaml")
ACCOUNT = "serviceAccount:electra@my-project.iam.gserviceaccount.com"
DEFAULT = "serviceAccount:1234-compute@developer.gserviceaccount.com"
LISTS = "compute tpus tpu-vm accelerator-types list"


def policy(*bindings):
    return json.dumps({"bindings": [{"role": f"roles/{role}", "members": list(who)} for role, *who in bindings]})


@pytest.fixture
def gcloud():
    """Where everything is well."""
    found = StandIn(FakeTpuApi())
    found.answers = {
        "auth print-access-token": "token",
        "projects describe my-project --format=value": "my-project",
        "projects describe": json.dumps({"projectNumber": "1234", "projectId": "my-project"}),
        "projects get-iam-policy": policy(("viewer", "user:me")),
        "services list": "tpu.googleapis.com\nstorage.googleapis.com\ncompute.googleapis.com",
        LISTS: json.dumps([{"name": "x/v3-8", "type": "v3-8"}]),
        "compute tpus tpu-vm versions list": json.dumps([{"name": "x/tpu-ubuntu2204-base"}]),
        "storage buckets describe": json.dumps({"location": "US-CENTRAL1"}),
        "storage buckets get-iam-policy": policy(("storage.objectAdmin", ACCOUNT), ("storage.admin", "user:me")),
    }
    found.objects["gs://bucket/shards/manifest.json"] = json.dumps({"max_seq_length": DEMO.data.max_seq_length})
    return found


def told(gcloud, **changes):
    fields = {"service_account": ACCOUNT.partition(":")[2], **changes}
    found = preflight(settings(**fields), DEMO, gcloud, with_plan=False)
    return {level: [text for each, text in found if each == level] for level in ("problem", "warning")}


def test_where_all_is_well_nothing_is_told(gcloud):
    assert told(gcloud) == {"problem": [], "warning": []}


# ------------------------------------------------------------------------------------ one cause, one problem


NO_LOGIN = "ERROR: (gcloud.auth.print-access-token) You do not currently have an active account selected.\nPlease run:"
AWAY = ("ERROR: (gcloud.x) not here",)


def test_without_a_login_there_is_one_problem(gcloud):
    gcloud.answers = {"": (NO_LOGIN,)}
    (problem,) = told(gcloud)["problem"]
    assert problem.startswith("login (gcloud auth login): ") and "active account" in problem


@pytest.mark.parametrize(
    ("away", "problem"),
    [
        (["projects", "services", "compute tpus"], "project: "),
        (["services list", "compute tpus"], "services: "),
        (["compute tpus"], "accelerator type: "),
        (["storage buckets", "storage cp"], "bucket: "),
        (["storage cp"], "writing to the bucket: "),
    ],
    ids=str,
)
def test_what_fails_of_the_same_cause_is_told_once(gcloud, away, problem):
    well = {command: answer for command, answer in gcloud.answers.items() if command not in away}
    gcloud.answers = dict.fromkeys(away, AWAY) | well
    (found,) = told(gcloud)["problem"]
    assert found.startswith(problem), found


def test_every_service_that_is_needed_is_asked_for(gcloud):
    gcloud.answers["services list"] = "tpu.googleapis.com\nstorage.googleapis.com"
    (problem,) = told(gcloud)["problem"]
    assert "gcloud services enable compute.googleapis.com" in problem


# ---------------------------------------------------------------------------------------------- the identity


@pytest.mark.parametrize(
    ("account", "bucket", "project", "level"),
    [
        (ACCOUNT, [("storage.objectAdmin", ACCOUNT)], [], None),
        (ACCOUNT, [("storage.objectUser", "user:me", ACCOUNT)], [], None),
        (ACCOUNT, [("storage.objectViewer", ACCOUNT)], [], "problem"),
        (ACCOUNT, [("storage.objectAdmin", "serviceAccount:other@my-project.iam.gserviceaccount.com")], [], "problem"),
        (ACCOUNT, [], [("storage.admin", ACCOUNT)], None),
        (ACCOUNT, [], [("editor", ACCOUNT)], None),
        (ACCOUNT, [("editor", ACCOUNT)], [], "problem"),
        (ACCOUNT, [("storage.objectAdmin", "group:trainers@example.org")], [], "warning"),
        (ACCOUNT, [("storage.objectAdmin", "allAuthenticatedUsers")], [], None),
        (DEFAULT, [], [("editor", DEFAULT)], None),
        (DEFAULT, [], [("viewer", DEFAULT)], "problem"),
        (ACCOUNT, AWAY, [], "warning"),
        (ACCOUNT, [], AWAY, "warning"),
        (ACCOUNT, AWAY, [("owner", ACCOUNT)], None),
    ],
)
def test_an_identity_that_may_not_use_the_bucket_is_found(gcloud, account, bucket, project, level):
    for command, found in (("storage buckets get-iam-policy", bucket), ("projects get-iam-policy", project)):
        gcloud.answers[command] = AWAY if found is AWAY else policy(*found)
    found = told(gcloud, service_account="" if account is DEFAULT else account.partition(":")[2])
    assert {each: len(texts) for each, texts in found.items() if texts} == ({level: 1} if level else {})
    if level:
        (text,) = found[level]
        assert account.partition(":")[2] in text and f"--member={account} --role=roles/storage.objectAdmin" in text


def test_a_role_of_ones_own_may_suffice(gcloud):
    roles = {"bindings": [{"role": "projects/my-project/roles/trainer", "members": [ACCOUNT]}]}
    gcloud.answers["storage buckets get-iam-policy"] = json.dumps(roles)
    assert not told(gcloud)["problem"] and "custom roles" in told(gcloud)["warning"][0]


@pytest.mark.parametrize(("seconds", "warned"), [("604800", True), ("0", False), ("x", False)])
def test_a_bucket_that_keeps_deleted_checkpoints_is_told(gcloud, seconds, warned):
    bucket = {"location": "US-CENTRAL1", "soft_delete_policy": {"retentionDurationSeconds": seconds}}
    gcloud.answers["storage buckets describe"] = json.dumps(bucket)
    warnings = told(gcloud)["warning"]
    assert len(warnings) == warned and all("for 7 days" in text and "--clear-soft-delete" in text for text in warnings)


# ------------------------------------------------------------------------- answers that are not what was expected


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "{}", "null", "5", '"x"', "[" * 100_000, "9" * 5000, '{"name": ', "\x00", '[{"name": 5}]',
     '{"bindings": [5]}', '{"location": []}', '{"max_seq_length": "64"}'],
    ids=lambda answer: answer[:20],
)  # fmt: skip
@pytest.mark.parametrize(
    "command",
    [LISTS, "compute tpus tpu-vm versions list", "storage buckets describe", "storage buckets get-iam-policy",
     "projects get-iam-policy", "storage cat gs://bucket/shards"],
)  # fmt: skip
def test_preflight_never_believes_an_answer(gcloud, command, answer):
    gcloud.answers = {command: answer, **{name: text for name, text in gcloud.answers.items() if name != command}}
    found = told(gcloud)
    for text in found["problem"] + found["warning"]:
        assert "\n" not in text and len(text) < 700


@pytest.mark.parametrize("answer", ["[]", "null", '{"state": 5}', '{"state": {"state": []}}', "[" * 100_000, "{"])
@pytest.mark.parametrize(
    "command",
    ["compute tpus tpu-vm describe", "compute tpus queued-resources describe", "storage objects list",
     "storage cat gs://bucket/runs/electra/machines.json"],
)  # fmt: skip
def test_status_never_believes_an_answer(gcloud, command, answer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "Gcloud", lambda *unused: gcloud)
    gcloud.answers = {command: answer}
    (tmp_path / "tpu.yaml").write_text(
        "{project: my-project, zone: us-central1-a, bucket: bucket, data: 'gs://bucket/shards', max_dollars: 100, "
        "config: configs/demo.yaml}\n"
    )
    code = launch.main(["status", "--settings", str(tmp_path / "tpu.yaml")])
    err = capsys.readouterr().err
    assert code == 1 and err.startswith("tpu: error: gcloud ") and err.count("\n") == 1 and len(err) < 400, err


# ------------------------------------------------------------------------------------------------------- money


@pytest.mark.parametrize(
    ("accelerator", "zone", "capacity", "dollars", "source", "known"),
    [
        ("v3-8", "us-central1-a", "on-demand", 8.0, "list price in us", True),
        ("v3-8", "europe-west4-a", "on-demand", 8.8, "list price in europe", True),
        ("v3-8", "us-central1-a", "spot", 2.04, "spot in us", True),
        ("v3-8", "europe-west4-a", "spot", 2.24, "spot in europe", True),
        ("v3-32", "europe-west4-a", "reserved", 35.2, "list price in europe", True),
        ("v4-8", "us-central2-b", "spot", 3.69, "spot in us", True),
        ("v4-8", "us-central2-b", "on-demand", 12.88, "list price in us", True),
        ("v5litepod-8", "us-central1-a", "spot", 1.96, "spot in us-central1", True),
        ("v6e-8", "us-central1-b", "spot", 4.58, "spot in us-central1", True),
        ("v6e-8", "asia-northeast1-b", "spot", 4.58, "spot in us-central1", False),
        ("v2-8", "us-central1-b", "on-demand", 4.5, "list price in us", True),
        ("v2-32", "us-central1-a", "on-demand", 24.0, "list price in us", True),
        ("v2-8", "us-central1-b", "spot", 4.5, "list price in us", False),
        ("v5p-8", "europe-west4-b", "spot", 16.8, "list price in us", False),
    ],
)
def test_prices_are_those_of_the_region_and_the_capacity(accelerator, zone, capacity, dollars, source, known):
    found = settings(accelerator_type=accelerator, zone=zone, capacity=capacity, dollars_per_hour=0.0)
    assert (round(found.price, 6), found.price_is_known) == (dollars, known)
    assert found.price_source.startswith(f"{source}, 202")
    own = settings(accelerator_type=accelerator, zone=zone, capacity=capacity, dollars_per_hour=3.0)
    assert (own.price, own.price_source, own.price_is_known) == (3.0, "dollars_per_hour", True)


def test_the_sample_can_pay_for_its_run():
    """0.3524 s a step are predicted (docs/performance.md); a fifth more is for what preemptions cost."""
    sample = load_fields(Settings, ROOT / "tpu/tpu.yaml", [], "")
    steps = load_config(sample.config).training.num_steps
    assert 1.2 * steps * 0.3524 / 3600 * sample.price <= sample.max_dollars


@pytest.mark.parametrize(
    ("max_dollars", "machines", "level"),
    [
        (500.0, [], "ok"),
        (329.0, [], "ok"),
        (328.0, [], "problem"),
        (140.0, [], "problem"),
        # half of it is done, and 200 dollars are spent
        (370.0, [Machine("m", 0.0, 0, 2.0, 0.0 + 1, 360_001.0, DEMO.training.num_steps // 2)], "ok"),
        (360.0, [Machine("m", 0.0, 0, 2.0, 0.0 + 1, 360_001.0, DEMO.training.num_steps // 2)], "problem"),
    ],
)
def test_a_budget_below_the_plan_is_refused(max_dollars, machines, level):
    (found,) = _budget(settings(max_dollars=max_dollars), 329.0, 6.1, DEMO, History(machines))
    assert found.level == level and "predicted, not measured" in found.text
    if level == "problem":
        assert f"max_dollars={max_dollars:g} would stop the run at " in found.text and "--no-plan" in found.text


def test_a_price_that_is_not_known_is_told():
    unknown = settings(accelerator_type="v5p-8", zone="europe-west4-b", dollars_per_hour=0.0, max_dollars=1e6)
    warning, _ = _budget(unknown, 329.0, 6.1, DEMO, History())
    assert warning.level == "warning" and "set dollars_per_hour" in warning.text and "$16.80" in warning.text


# ------------------------------------------------------------------------------------------------ how it ends


@pytest.fixture
def ends(gcloud, tmp_path, monkeypatch, capsys):
    """(exit code, standard error) of `make tpu-train` where watching raises something."""
    monkeypatch.setattr(launch, "Gcloud", lambda *unused: gcloud)
    monkeypatch.setattr(launch, "_upload", lambda *unused: "gs://bucket/code")
    (tmp_path / "tpu.yaml").write_text(
        "{project: my-project, zone: us-central1-a, bucket: bucket, data: 'gs://bucket/shards', max_dollars: 100, "
        f"config: {ROOT / 'configs/demo.yaml'}}}\n"
    )

    def run(error, *more):
        def watch(self):
            raise error

        monkeypatch.setattr(Babysitter, "watch", watch)
        code = launch.main(["train", "--settings", str(tmp_path / "tpu.yaml"), "--no-preflight", *more])
        return code, [line for line in capsys.readouterr().err.splitlines() if not line.startswith("+ ")]

    return run


def test_an_interruption_says_what_goes_on(ends):
    code, (line,) = ends(KeyboardInterrupt())
    assert (
        code == 130
        and "detached: the machine, if there is one, keeps running and costs money; make tpu-train attaches" in line
    )


def test_what_nobody_foresaw_is_one_line_and_70(ends):
    code, (line,) = ends(ZeroDivisionError("x\ny"))
    assert code == 70 and line.startswith("tpu: error: unexpected error: ZeroDivisionError: x (traceback: ")


@pytest.mark.parametrize("number", ["nan", "-1", "1e30", "x", "0"])
def test_numbers_out_of_range_are_usage(ends, number, capsys):
    with pytest.raises(SystemExit) as refused:
        ends(KeyboardInterrupt(), "--poll-seconds", number)
    assert refused.value.code == 2 and "expected a number, 0.1 to 3,600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "code", "line"),
    [
        ('ERROR: (gcloud.x) {\n  "code": 8,\n  "message": "no\\nmore"\n}', 8, "ERROR: no more (code 8)"),
        ('ERROR: (gcloud.x) {\n  "code": "8"', None, 'ERROR: (gcloud.x) {'),
        ("ERROR: (gcloud.x) {[}", None, "ERROR: (gcloud.x) {[}"),
        ("", None, "no message"),
    ],
)  # fmt: skip
def test_the_reason_of_an_operation_is_found(said, code, line):
    error = GcloudError(["compute", "x"], said)
    assert (error.code, str(error)) == (code, f"gcloud compute x: {line}")


def test_what_google_adds_is_passed_over(gcloud):
    gcloud.answers["x"] = json.dumps({"bindings": [], "etag": "BwX", "version": 3})
    assert gcloud.answer(["x"], Policy) == Policy([])
