"""Everything that can be known to be wrong before a machine is paid for: all findings at once, each with its fix."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from electra_flax.files import parse_json
from tpu import commands, history
from tpu.answers import Bucket, Manifest, Named, PhasePlan
from tpu.gcloud import Gcloud, GcloudError
from tpu.identity import check_identity
from tpu.settings import Settings

# compute: machines of a TPU, their networks and default identity are its.
SERVICES = ("tpu.googleapis.com", "storage.googleapis.com", "compute.googleapis.com")
_DOLLARS_PER_GB = 0.02  # between regions of a continent, Google's list price; more between continents
_DAY = 86400


class Finding(NamedTuple):
    """One line for people."""

    level: str
    """"ok", "warning" or "problem"; a problem keeps anything from being created."""
    text: str


def preflight(settings: Settings, config: Config, gcloud: Gcloud, with_plan: bool = True) -> list[Finding]:
    """Ask Google, the bucket and the compiler; create nothing but a small object."""
    if not gcloud.is_there:
        return [Finding("problem", "gcloud is not installed: install the Google Cloud SDK, then gcloud auth login")]
    found: list[Finding] = []
    failed: set[str] = set()
    for check in _CHECKS:
        try:
            findings = check.run(settings, config, gcloud)
        except UserError as error:
            if failed & set(check.needs):
                continue  # of the same cause
            findings = [Finding("problem", f"{check.name}: {error}")]
            failed.add(check.name)
        found += findings
        if check is _CHECKS[0] and failed:  # nothing else can be asked
            return found
    found.append(
        Finding(
            "ok",
            f"quota is not asked for: that of {'preemptible ' if settings.capacity == 'spot' else ''}"
            f"{settings.slice.generation.prefix} TPU cores in {settings.zone} must be at least what "
            f"{settings.accelerator_type} has (console, IAM & Admin, Quotas); lent TPUs come with theirs",
        )
    )
    return found + (_plan(settings, config, gcloud) if with_plan else [])


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
    listed = gcloud.answer(
        [*commands.TPU, "tpu-vm", kind, "list", *commands.where(settings), "--format=json"], list[Named]
    )
    offered = sorted({each.name.rsplit("/", 1)[-1] for each in listed})
    if name in offered:
        return [Finding("ok", f"{settings.zone} offers {name}")]
    shown = ", ".join(offered) or "none"
    return [Finding("problem", f"{settings.zone} does not offer {name}: choose another zone, or one of {shown}")]


def _bucket(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    bucket = gcloud.answer(["storage", "buckets", "describe", f"gs://{settings.bucket}", "--format=json"], Bucket)
    region, place = settings.zone.rsplit("-", 1)[0], bucket.location.lower()
    found = [Finding("ok", f"bucket {settings.bucket} is in {place}")]
    if place != region:
        text = (
            f"bucket {settings.bucket} is in {place or 'an unknown place'}, the machine would be in {region}: every "
            f"checkpoint crosses, at about ${_DOLLARS_PER_GB:.2f} a GB or more, and slower; make one there: gcloud "
            f"storage buckets create gs://NAME --location={region} --uniform-bucket-level-access "
            f"--soft-delete-duration=0 --project={settings.project}"
        )
        found = [Finding("warning", text)]
    kept = bucket.soft_delete_policy.retentionDurationSeconds
    if days := int(kept) // _DAY if kept.isdecimal() else 0:
        text = (
            f"bucket {settings.bucket} keeps, and charges for, what is deleted for {days} days more, every checkpoint "
            f"of a run: gcloud storage buckets update gs://{settings.bucket} --clear-soft-delete"
        )
        found.append(Finding("warning", text))
    return found


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
            there = gcloud.answer(commands.read(f"{url}/manifest.json"), Manifest).max_seq_length
        except GcloudError as error:
            what = "is not there" if error.is_not_found else "is no manifest, or cannot be read"
            found.append(Finding("problem", f"{url}/manifest.json {what} ({error}): electra-data shard makes one"))
            continue
        if there != length:
            found.append(
                Finding("problem", f"{url} has sequences of {there} tokens, the configuration {length}: change either")
            )
        else:
            found.append(Finding("ok", f"{url}: sequences of {there} tokens"))
    return found


def _identity(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    return [Finding(*check_identity(settings, gcloud))]


class _Check(NamedTuple):
    name: str
    run: Callable[[Settings, Config, Gcloud], list[Finding]]
    needs: tuple[str, ...] = ()
    """Checks without which this one fails of the same cause."""


_CHECKS = (
    _Check("login (gcloud auth login)", _login),
    _Check("project", _project),
    _Check("services", _services, ("project",)),
    _Check("accelerator type", _accelerator, ("project", "services")),
    _Check("runtime version", _image, ("project", "services", "accelerator type")),
    _Check("bucket", _bucket),
    _Check("writing to the bucket", _writable, ("bucket",)),
    _Check("identity of the machines", _identity, ("project", "bucket")),
    _Check("data", _data),
)


def _plan(settings: Settings, config: Config, gcloud: Gcloud) -> list[Finding]:
    """Return whether the step fits, as the TPU's compiler says, and what the rest of the run may cost."""
    command = [
        str(Path(sys.executable).with_name("electra-flax")), "plan", "--config", settings.config, "--topology",
        settings.accelerator_type, "--price-per-hour", str(settings.price), "--json", *settings.overrides,
    ]  # fmt: skip
    environment = {**os.environ, **dict(pair.split("=", 1) for pair in settings.environment)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    # libtpu ends the process itself where it does not know a flag: its line is all that there is.
    unknown = [line for line in done.stderr.splitlines() if "Unknown command line flag" in line]
    if unknown:  # the compiler is that of the machines: they would end the same way
        return [Finding("problem", f"environment: LIBTPU_INIT_ARGS: {unknown[0].strip()}: remove it")]
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode or not done.stdout.strip():
        return [Finding("warning", f"electra-flax plan could not be made ({last}): whether it fits is not known")]
    text = done.stdout if done.stdout.lstrip().startswith("[") else f"[{done.stdout}]"  # of one phase, or several
    phases = parse_json(text, list[PhasePlan], "electra-flax plan", "report it", is_ours=False)
    found = []
    for each in phases:
        if not each.fits:
            ways = "; ".join(str(way["change"]) for way in each.ways_out) or "a larger slice"
            found.append(Finding("problem", f"the step does not fit into {settings.accelerator_type}: {ways}"))
    dollars = sum(each.predicted_dollars or 0 for each in phases)
    days = sum(each.predicted_days or 0 for each in phases)
    return found + _budget(settings, dollars, days, config, history.load(settings, gcloud))


def _budget(settings: Settings, dollars: float, days: float, config: Config, past: history.History) -> list[Finding]:
    """Return whether max_dollars are enough for the steps that are left."""
    found = []
    if not settings.price_is_known:
        text = (
            f"no price of {settings.capacity} {settings.accelerator_type} in {settings.zone} is known, counted is "
            f"${settings.price:,.2f} an hour ({settings.price_source}): give dollars_per_hour"
        )
        found.append(Finding("warning", text))
    left = max(0.0, 1 - past.step / config.training.num_steps)
    now = max((machine.gone or machine.there or machine.asked for machine in past.machines), default=0.0)
    spent = past.spent(now)
    needed = spent + left * dollars
    text = f"predicted, not measured: {days:.1f} days, ${dollars:,.0f} at ${settings.price:,.2f} an hour " + (
        f"({settings.price_source})"
    )
    if past.step:
        text += f"; step {past.step:,} is reached, about ${spent:,.0f} are spent, ${left * dollars:,.0f} to go"
    if needed <= settings.max_dollars:
        return [*found, Finding("ok", text)]
    text += (
        f": max_dollars={settings.max_dollars:g} would end the run at {settings.max_dollars / needed:.0%} of that: "
        f"raise it to {needed * 1.2:,.0f} or so (machines that are lost cost too), or --no-plan to begin all the same"
    )
    return [*found, Finding("problem", text)]
