"""The launcher's commands, with the real gcloud where there is one, against Google's services in stand-ins."""

import json
import os
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path

import pytest
from gcloud_tools import HAS_GCLOUD, StandIn, real_environment, settings
from google.cloud import tpu_v2
from google.protobuf import json_format
from tpu_api import FakeTpuApi

from electra_flax.config.loading import load_config
from electra_flax.errors import UserError
from tpu import commands, launch
from tpu.answers import Node, Request
from tpu.babysitter import delete
from tpu.gcloud import Gcloud, GcloudError
from tpu.package import STARTUP_SCRIPT, build, upload
from tpu.preflight import _plan, preflight
from tpu.settings import Settings

ROOT = Path(__file__).parents[1]
DEMO = load_config(ROOT / "configs/demo.yaml")
SPOT_POD = {
    "accelerator_type": "v3-32", "service_account": "trainer@my-project.iam.gserviceaccount.com", "network": "mine",
    "subnetwork": "below", "external_ips": False, "labels": ["team=nlp"],
}  # fmt: skip


@pytest.fixture
def api():
    with FakeTpuApi() as api:
        yield api


@pytest.fixture
def gcloud(api, google_storage, tmp_path, monkeypatch):
    """The real one, or, where it is missing, the stand-in."""
    if not HAS_GCLOUD:
        warnings.warn("NOT CHECKED: gcloud is not installed; its stand-in answers instead", stacklevel=1)
        return StandIn(api)
    for name, value in real_environment(api, google_storage, tmp_path).items():
        monkeypatch.setenv(name, value)
    return Gcloud()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a b"), ("name", "a;rm"), ("name", "$(reboot)"), ("name", "a\nb"), ("name", "`x`"), ("name", "a'b"),
        ("name", 'a"b'), ("name", "-flag"), ("name", ""), ("project", "--help"), ("zone", "us-central1"),
        ("bucket", "gs://bucket"), ("data", "shards"), ("data", "gs://b/a,b=c"), ("data", "gs://b/$(x)"),
        ("labels", ["a=b,c=d"]), ("labels", ["A=b"]), ("overrides", ["--training.num_steps 5"]),
        ("overrides", ["--config=/etc/passwd"]), ("service_account", "me"), ("accelerator_type", "v3-9"),
        ("max_dollars", 0.0), ("max_creations_per_hour", 0), ("runtime_version", "a b"), ("config", "a\nb"),
        ("max_dollars", float("nan")), ("max_dollars", float("inf")), ("max_dollars", -1.0), ("boot_minutes", 1e30),
        ("silent_minutes", float("nan")), ("queue_hours", 0.0), ("dollars_per_hour", -1.0),
        ("max_creations_per_hour", 2**63), ("restarts_without_progress", 10**30), ("environment", ["A"]),
        ("environment", ["A=b\nc"]), ("environment", ["A B=c"]), ("environment", ["ELECTRA_RUN=x"]),
        ("environment", ["=x"]), ("accelerator_type", "v3-" + "1" * 5000), ("name", "a" * 100_000),
    ],
)  # fmt: skip
def test_what_could_be_misread_is_refused(field, value):
    with pytest.raises(UserError, match=field) as refused:
        settings(**{field: value})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("accelerator", "workers", "image"),
    [
        ("v2-8", 1, "tpu-ubuntu2204-base"), ("v3-8", 1, "tpu-ubuntu2204-base"), ("v3-32", 4, "tpu-ubuntu2204-base"),
        ("v4-8", 1, "tpu-ubuntu2204-base"), ("v4-32", 4, "tpu-ubuntu2204-base"),
        ("v5litepod-8", 1, "v2-alpha-tpuv5-lite"), ("v5litepod-16", 4, "v2-alpha-tpuv5-lite"),
        ("v5p-8", 1, "v2-alpha-tpuv5"), ("v6e-8", 1, "v2-alpha-tpuv6e"),
        ("v6e-16", 4, "v2-alpha-tpuv6e"),
    ],
)  # fmt: skip
def test_each_generation_has_its_image_and_workers(accelerator, workers, image):
    found = settings(accelerator_type=accelerator)
    assert (found.num_workers, found.image) == (workers, image)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["queued", "plain"])
def test_machines_are_created_seen_and_deleted(api, gcloud, mode):
    made = settings(mode=mode)
    assert gcloud.describe(commands.describe_node(made), Node) is None
    gcloud.do(commands.create(made, "m1", "gs://bucket/runs/electra/code/abc", STARTUP_SCRIPT))
    assert gcloud.describe(commands.describe_node(made), Node).state == "READY"
    if mode == "queued":
        assert gcloud.describe(commands.describe_request(made), Request).state.state == "ACTIVE"
    delete(made, gcloud)
    assert gcloud.describe(commands.describe_node(made), Node) is None and not api.requests


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GCLOUD, reason="NOT CHECKED: what gcloud sends, it is not installed here")
@pytest.mark.parametrize("mode", ["queued", "plain"])
@pytest.mark.parametrize("changes", [{"capacity": "on-demand"}, {"capacity": "reserved"}, SPOT_POD], ids=str)
def test_what_gcloud_sends_is_what_google_reads(api, gcloud, mode, changes):
    """Parsed by Google's own message classes, which refuse what they do not know."""
    made = settings(mode=mode, **changes)
    gcloud.do(commands.create(made, "m1", "gs://bucket/runs/electra/code/abc", STARTUP_SCRIPT))
    ((kind, body),) = api.bodies
    if kind == "nodes":
        node = json_format.ParseDict(body, tpu_v2.Node()._pb)
        scheduling = node.scheduling_config
        assert (scheduling.spot, scheduling.reserved) == (made.capacity == "spot", made.capacity == "reserved")
    else:
        request = json_format.ParseDict(body, tpu_v2.QueuedResource()._pb)
        (spec,) = request.tpu.node_spec
        node = spec.node
        assert spec.node_id == made.name
        assert request.HasField("spot") == (made.capacity == "spot")
        assert request.queueing_policy.valid_until_duration.seconds == 24 * 3600
    assert node.accelerator_type == made.accelerator_type and node.runtime_version == made.image
    assert node.metadata["startup-script"] == STARTUP_SCRIPT.read_text()
    assert {key: value for key, value in node.metadata.items() if key != "startup-script"} == {
        "electra-run": "gs://bucket/runs/electra", "electra-code": "gs://bucket/runs/electra/code/abc",
        "electra-machine": "m1", "electra-devices": str(made.slice.num_devices),
        "electra-workers": str(made.num_workers),
    }  # fmt: skip
    assert node.labels["electra-run"] == made.name
    if changes is SPOT_POD:
        assert node.service_account.email == made.service_account and node.labels["team"] == "nlp"
        assert node.service_account.scope == ["https://www.googleapis.com/auth/cloud-platform"]
        assert node.network_config.network.endswith("mine") and node.network_config.subnetwork.endswith("below")
        assert not node.network_config.enable_external_ips


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GCLOUD, reason="NOT CHECKED: how gcloud ends, it is not installed here")
def test_a_command_that_gcloud_does_not_know_fails_for_good(gcloud):
    with pytest.raises(GcloudError) as error:
        gcloud.ask(["compute", "tpus", "nothing"])
    assert error.value.is_for_good and not error.value.is_not_found


@pytest.mark.skipif(not HAS_GCLOUD, reason="NOT CHECKED: ssh through gcloud, it is not installed here")
def test_ssh_passes_commands_on_as_they_are_and_their_exit_codes_back(api, gcloud, tmp_path, monkeypatch):
    made = settings(mode="plain")
    gcloud.do(commands.create(made, "m1", "gs://bucket/code", STARTUP_SCRIPT))
    stub = tmp_path / "bin/ssh"
    stub.parent.mkdir()
    stub.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" >>{tmp_path}/said\n[[ "$*" == *"exit 7"* ]] && exit 7 || exit 0\n'
    )
    keygen = tmp_path / "bin/ssh-keygen"
    keygen.write_text(
        '#!/bin/bash\nwhile [ $# -gt 0 ]; do [ "$1" = -f ] && f=$2; shift; done\n'
        'echo private >"$f"; echo "ssh-rsa AAAA me" >"$f.pub"\n'
    )
    for tool in (stub, keygen):
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    text = "echo \"a 'b' $(c)\"; exit 7"
    assert gcloud.attached(commands.ssh(made, "0", text)) == 7
    assert text in (tmp_path / "said").read_text().replace("\n", " ")  # ssh joins what it is given by blanks


# ------------------------------------------------------------------------------------------ before anything is paid


@pytest.fixture
def bucket(google_storage):
    """Puts an object into the stand-in's bucket."""

    def put(name, text):
        address = f"{google_storage['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
        urllib.request.urlopen(urllib.request.Request(address, text.encode(), method="POST")).close()

    return put


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GCLOUD, reason="NOT CHECKED: preflight asks the real gcloud, which is not installed here")
def test_preflight_tells_everything_at_once(api, gcloud, bucket):
    bucket("good/manifest.json", json.dumps({"max_seq_length": DEMO.data.max_seq_length}))
    bucket("long/manifest.json", json.dumps({"max_seq_length": 512}))
    bucket("bad/manifest.json", "{")

    def told(level, **changes):
        found = preflight(settings(**changes), DEMO, gcloud, with_plan=False)
        return [finding.text for finding in found if finding.level == level]

    assert told("problem", data="gs://bucket/good") == []
    api.services, api.types, api.images = ["storage.googleapis.com", "compute.googleapis.com"], ["v2-8"], []
    problems = "\n".join(told("problem", data="gs://bucket/long"))
    for expected in (
        "not enabled: tpu.googleapis.com: gcloud services enable tpu.googleapis.com --project=my-project",
        "us-central1-a does not offer v3-8: choose another zone, or one of v2-8",
        "does not offer tpu-ubuntu2204-base",
        f"gs://bucket/long: sequences of 512 tokens, but the configuration has {DEMO.data.max_seq_length}",
    ):
        assert expected in problems
    assert any("is not a manifest" in text for text in told("problem", data="gs://bucket/bad"))
    problems = told("problem", data="gs://bucket/missing", bucket="elsewhere")
    assert sum("elsewhere" in text for text in problems) >= 1 and any("gs://bucket/missing" in t for t in problems)
    (warning, identity) = told("warning", data="gs://bucket/good", zone="europe-west4-a")
    assert "the machine in europe-west4" in warning and "--location=europe-west4" in warning
    # the stand-in of the storage has no policies
    assert "1234-compute@developer.gserviceaccount.com has no role" in identity and "cannot be read" in identity
    api.members = ["serviceAccount:1234-compute@developer.gserviceaccount.com"]
    assert not any("has no role" in text for text in told("warning", data="gs://bucket/good"))
    (only,) = preflight(settings(), DEMO, Gcloud("gcloud-that-is-not-there"))
    assert only.level == "problem" and "not installed" in only.text


@pytest.mark.slow
def test_the_plan_is_among_the_findings(api):
    pytest.importorskip("libtpu", reason="NOT CHECKED: the TPU compiler is not installed here")
    (found,) = _plan(settings(max_dollars=1e-6), DEMO, StandIn(api))
    assert found.level == "problem" and "predicted, not measured" in found.text and "max_dollars=1e-06" in found.text
    (found,) = _plan(settings(overrides=["--model.hidden_size=7"]), DEMO, StandIn(api))
    assert "plan failed" in found.text and "hidden_size" in found.text
    (found,) = _plan(settings(environment=["LIBTPU_INIT_ARGS=--xla_tpu_no_such_flag=true"]), DEMO, StandIn(api))
    assert found.level == "problem" and "environment: LIBTPU_INIT_ARGS" in found.text, found


# ------------------------------------------------------------------------------------------------- what is brought


def test_a_package_is_named_by_its_content_and_verifies_itself(tmp_path):
    names = {build(settings(), DEMO, tmp_path / part) for part in ("one", "two")}
    assert len(names) == 1
    other = build(settings(data="gs://bucket/other"), DEMO, tmp_path / "three")
    assert other not in names
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "one", check=True)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {
        "config.yaml",
        "run.json",
        "requirements-tpu.lock",
        "worker.py",
        "electra-flax.service",
        "python-version",
    } <= files
    assert any(name.startswith("electra_flax-") and name.endswith(".whl") for name in files)


@pytest.mark.slow
def test_a_package_is_uploaded_once(api, gcloud, tmp_path):
    made = settings(name="once")
    name = build(made, DEMO, tmp_path / "package")
    url = upload(made, gcloud, tmp_path / "package", name)
    assert gcloud.find(commands.read(f"{url}/SHA256SUMS")) and gcloud.find(commands.read(f"{url}/config.yaml"))
    (tmp_path / "package/config.yaml").unlink()  # what is there is not read again
    assert upload(made, gcloud, tmp_path / "package", name) == url


# --------------------------------------------------------------------------------------------------- the commands


def run(capsys, *arguments):
    code = launch.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tpu.yaml"
    path.write_text(
        f"{{project: my-project, zone: us-central1-a, bucket: bucket, data: 'gs://bucket/shards', max_dollars: 100, "
        f"dollars_per_hour: 8, config: {ROOT / 'configs/demo.yaml'}}}\n"
    )
    return path


def test_a_dry_run_prints_the_commands_and_runs_none(capsys, file):
    code, _, err = run(capsys, "train", "--settings", str(file), "--dry-run", "--gcloud", "/not/there")
    lines = [line for line in err.splitlines() if line.startswith("+ ")]
    assert code == 0 and len(lines) == 7
    assert "queued-resources create electra" in lines[3] and "--spot" in lines[3]
    assert "delete electra --force --quiet" in lines[5]


def test_a_mistyped_flag_is_usage_and_a_field_is_none(capsys, file):
    with pytest.raises(SystemExit) as ended:
        run(capsys, "train", f"--setings={file}")
    assert ended.value.code == 2 and "--setings: unknown flag; did you mean --settings" in capsys.readouterr().err
    code, _, err = run(capsys, "stop", "--settings", str(file), "--silent_minutes", "x")
    assert code == 1 and "silent_minutes" in err and "unknown flag" not in err


def test_mistakes_are_one_line(capsys, file, tmp_path):
    for arguments, expected in (
        (["status", "--settings", str(tmp_path / "none.yaml")], "no such file: copy tpu/tpu.yaml"),
        (["status", "--settings", str(file), "--zoen", "x"], "--zoen: unknown field; did you mean zone"),
        (["status", "--settings", str(file), "--capacity", "spott"], "expected"),
        (["train", "--settings", str(file), "--config", "none.yaml", "--dry-run"], "none.yaml"),
        (["status", "--settings", str(file), "--gcloud", "/not/there"], "not installed"),
        (["train", "--settings", str(file), "--name", "x y"], "name='x y'"),
        (["train", "--settings", str(file), "--max_dollars", "nan"], "max_dollars=nan: expected"),
        (["train", "--settings", str(tmp_path)], "a folder, expected a file"),
        (["status", "--settings", str(file), "--gcloud", str(file)], "cannot be run"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 1 and err.count("\n") == 1 and err.startswith("tpu: error: ") and expected in err, err


@pytest.mark.skipif(
    not HAS_GCLOUD, reason="NOT CHECKED: the commands call the real gcloud, which is not installed here"
)
@pytest.mark.slow
def test_create_status_logs_stop_and_delete(api, gcloud, bucket, capsys, file):
    bucket("shards/manifest.json", json.dumps({"max_seq_length": DEMO.data.max_seq_length}))
    common = ["--settings", str(file), "--name", "life"]
    code, out, err = run(capsys, "create", *common, "--no-plan")
    assert code == 0 and "up to $8.00 an hour" in out, err
    (machine,) = [node["metadata"]["electra-machine"] for node in api.nodes.values()]
    status = {"machine": machine, "worker": 0, "phase": "training", "step": 70, "time": 0}
    bucket("runs/life/status/worker-0.json", json.dumps(status) + "\n")
    bucket("runs/life/logs/worker-0.log", "one\ntwo\n")
    code, out, _ = run(capsys, "status", *common)
    assert code == 0 and "worker 0   training, step 70" in out and "STILL EXISTS (READY)" in out
    code, out, _ = run(capsys, "status", *common, "--json")
    assert json.loads(out)["step"] == 70 and json.loads(out)["node"] == "READY"
    assert run(capsys, "logs", *common, "--lines", "1")[1] == "two\n"
    bucket("runs/life/status/worker-0.json", json.dumps(status | {"phase": "stopped"}) + "\n")
    code, out, _ = run(capsys, "stop", *common)
    assert code == 0 and "make tpu-train continues it" in out and not api.nodes and not api.requests
    assert gcloud.ask(commands.read("gs://bucket/runs/life/wish")) == "stop"
    code, out, _ = run(capsys, "delete", *common)
    assert code == 0 and "the machine life is deleted" in out


def test_every_command_has_help_and_every_field_a_meaning():
    for name in ("preflight", "create", "train", "status", "logs", "ssh", "stop", "delete"):
        found = subprocess.run(
            [sys.executable, "-m", "tpu.launch", name, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout
        assert "--settings" in found and "exit codes" in found
    fields = subprocess.run(
        [sys.executable, "-m", "tpu.launch", "fields"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    for name in Settings.__dataclass_fields__:
        assert f"--{name} " in fields


# ------------------------------------------------------------------------------------------------------ the scripts


def test_scripts_are_clean():
    tools = Path(sys.executable).parent
    subprocess.run(["bash", "-n", str(STARTUP_SCRIPT)], check=True)
    subprocess.run([tools / "shellcheck", str(STARTUP_SCRIPT)], check=True)
    subprocess.run([tools / "shfmt", "-i", "2", "-d", str(STARTUP_SCRIPT)], check=True)
    assert STARTUP_SCRIPT.stat().st_size < 256 * 1024


def test_no_secret_can_get_into_a_command():
    """Nothing of the settings is one, and the environment is not read."""
    text = " ".join(commands.create(settings(), "m1", "gs://bucket/code", STARTUP_SCRIPT)) + STARTUP_SCRIPT.read_text()
    assert not any(word in text.lower() for word in ("token", "password", "secret", "hf_", "wandb_api"))


def test_an_error_of_gcloud_is_its_own_line():
    error = GcloudError(["compute", "tpus", "tpu-vm", "create"], "noise\nERROR: (x) RESOURCE_EXHAUSTED: none left\n")
    assert str(error) == "gcloud compute tpus tpu-vm create: ERROR: (x) RESOURCE_EXHAUSTED: none left"
    assert not error.is_not_found
