"""Everything that can be known to be wrong before a machine is paid for: all findings at once, each with its fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.config import Config
from electra_flax.errors import UserError
from tpu import commands
from tpu.gcloud import Gcloud
from tpu.settings import Settings

SERVICES = ("tpu.googleapis.com", "storage.googleapis.com")
_DOLLARS_PER_GB = 0.02  # between regions of a continent, Google's list price; more between continents


class Finding(NamedTuple):
    """One line for people."""

    level: str
    """"ok", "warning" or "problem"; a problem keeps anything from being created."""
    text: str


def preflight(settings: Settings, config: Config, gcloud: Gcloud, with_plan: bool = True) -> list[Finding]:
    """Asks Google, the bucket and the compiler; creates nothing but a small object."""
    if not gcloud.is_there:
        return [Finding("problem", "gcloud is not installed: install the Google Cloud SDK, then gcloud auth login")]
    found = []
    for check in (_login, _project, _services, _accelerator, _image, _bucket, _writable, _data):
        try:
            found += check(settings, config, gcloud)
        except UserError as error:
            found.append(Finding("problem", f"{_PURPOSE[check.__name__]}: {error}"))
    found.append(
        Finding(
            "ok",
            f"quota is not asked for: that of {'preemptible ' if settings.capacity == 'spot' else ''}"
            f"{settings.slice.generation.prefix} TPU cores in {settings.zone} must be at least what "
            f"{settings.accelerator_type} has (console, IAM & Admin, Quotas); lent TPUs come with theirs",
        )
    )
    return found + (_plan(settings) if with_plan else [])


_PURPOSE = {
    "_login": "login (gcloud auth login)",
    "_project": "project",
    "_services": "services",
    "_accelerator": "accelerator type",
    "_image": "runtime version",
    "_bucket": "bucket",
    "_writable": "bucket",
    "_data": "data",
}


def _login(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    gcloud.ask(["auth", "print-access-token"])  # fetches one, and so finds a login that has expired
    return [Finding("ok", "logged in")]


def _project(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    gcloud.ask(["projects", "describe", settings.project, "--format=value(projectId)"])
    return [Finding("ok", f"project {settings.project}")]


def _services(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    enabled = gcloud.ask(
        ["services", "list", "--enabled", "--format=value(config.name)", f"--project={settings.project}"]
    )
    missing = [service for service in SERVICES if service not in enabled.split()]
    if missing:
        fix = f"gcloud services enable {' '.join(missing)} --project={settings.project}"
        return [Finding("problem", f"not enabled: {', '.join(missing)}: {fix}")]
    return [Finding("ok", "services enabled")]


def _accelerator(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    return _offered(settings, gcloud, "accelerator-types", settings.accelerator_type)


def _image(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    return _offered(settings, gcloud, "versions", settings.image)


def _offered(settings: Settings, gcloud: Gcloud, kind: str, name: str) -> list[Finding]:
    listed: list[dict[str, Any]] = json.loads(
        gcloud.ask([*commands.TPU, "tpu-vm", kind, "list", *commands.where(settings), "--format=json"])
    )
    offered = sorted({each["name"].rsplit("/", 1)[-1] for each in listed})
    if name in offered:
        return [Finding("ok", f"{settings.zone} offers {name}")]
    shown = ", ".join(offered) or "none"
    return [Finding("problem", f"{settings.zone} does not offer {name}: choose another zone, or one of {shown}")]


def _bucket(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    found = json.loads(gcloud.ask(["storage", "buckets", "describe", f"gs://{settings.bucket}", "--format=json"]))
    region, place = settings.zone.rsplit("-", 1)[0], str(found.get("location", "")).lower()
    if place == region:
        return [Finding("ok", f"bucket {settings.bucket} is in {place}")]
    text = (
        f"bucket {settings.bucket} is in {place or 'an unknown place'}, the machine would be in {region}: every "
        f"checkpoint crosses, at about ${_DOLLARS_PER_GB:.2f} a GB or more, and slower; make one there: gcloud storage "
        f"buckets create gs://NAME --location={region} --project={settings.project}"
    )
    return [Finding("warning", text)]


def _writable(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    gcloud.ask(commands.write(f"{settings.run_url}/preflight"), "can be written\n")
    return [Finding("ok", f"{settings.run_url} can be written")]


def _data(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    found = []
    lengths = [phase.config.data.max_seq_length for phase in config.phases]
    for url, length in zip([settings.data, settings.long_data], lengths, strict=False):
        if not url:
            found.append(Finding("problem", "the configuration has a second phase (long_phase.steps): give long_data"))
            continue
        try:
            manifest = json.loads(gcloud.ask(commands.read(f"{url}/manifest.json")))
        except json.JSONDecodeError as error:
            found.append(Finding("problem", f"{url}/manifest.json is no manifest ({error})"))
            continue
        if (there := manifest.get("max_seq_length")) != length:
            found.append(
                Finding("problem", f"{url} has sequences of {there} tokens, the configuration {length}: change either")
            )
        else:
            found.append(Finding("ok", f"{url}: sequences of {there} tokens"))
    return found


def _plan(settings: Settings) -> list[Finding]:
    """Whether the step fits, as the TPU's compiler says, and what the run may cost."""
    command = [
        str(Path(sys.executable).with_name("electra-flax")), "plan", "--config", settings.config, "--topology",
        settings.accelerator_type, "--price-per-hour", str(settings.price), "--json", *settings.overrides,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [Finding("warning", f"electra-flax plan could not be made ({last}): whether it fits is not known")]
    plan = json.loads(done.stdout)
    phases = plan if isinstance(plan, list) else [plan]
    found = []
    for each in phases:
        if not each["fits"]:
            ways = "; ".join(way["change"] for way in each["ways_out"]) or "a larger slice"
            found.append(Finding("problem", f"the step does not fit into {settings.accelerator_type}: {ways}"))
    dollars = sum(each["predicted_dollars"] or 0 for each in phases)
    days = sum(each["predicted_days"] or 0 for each in phases)
    text = f"predicted, not measured: {days:.1f} days, ${dollars:,.0f} at ${settings.price:,.2f} an hour"
    if dollars > settings.max_dollars:
        found.append(
            Finding("warning", f"{text}; max_dollars={settings.max_dollars:g} will stop the run before its end")
        )
    else:
        found.append(Finding("ok", text))
    return found
