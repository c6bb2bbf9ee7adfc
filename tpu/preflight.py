"""Everything that can be known to be wrong before a machine is paid for: all findings at once, each with its fix."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from electra_flax.files import parse_json
from electra_flax.formats import counted, duration
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
        return [Finding("problem", "gcloud is not installed: install the Google Cloud SDK, then run gcloud auth login")]
    found: list[Finding] = []
    failed: set[str] = set()
    for name, (check, needs) in _CHECKS.items():
        try:
            findings = list(check(settings, config, gcloud))
        except UserError as error:
            if failed & set(needs):
                continue  # of the same cause: one line for it, not one for each check that fell over it
            findings = [Finding("problem", f"{name}: {error}")]
            failed.add(name)
        found += findings
        if check is _login and failed:  # nothing else can be asked
            return found
    preemptible = "preemptible " if settings.capacity == "spot" else ""
    found.append(
        Finding(
            "ok",
            f"quota is not checked: your project needs enough {preemptible}{settings.slice.generation.prefix} TPU "
            f"cores in {settings.zone} for {settings.accelerator_type} (console: IAM & Admin, Quotas; TPU Research "
            "Cloud grants include it)",
        )
    )
    return found + (_plan(settings, config, gcloud) if with_plan else [])


def _login(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    gcloud.ask(["auth", "print-access-token"])  # fetches one, and so finds a login that has expired
    yield Finding("ok", "logged in")


def _project(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    gcloud.ask(["projects", "describe", settings.project, "--format=value(projectId)"])
    yield Finding("ok", f"project {settings.project}")


def _services(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    enabled = gcloud.ask(
        ["services", "list", "--enabled", "--format=value(config.name)", f"--project={settings.project}"]
    )
    if missing := [service for service in SERVICES if service not in enabled.split()]:
        fix = f"gcloud services enable {' '.join(missing)} --project={settings.project}"
        yield Finding("problem", f"services not enabled: {', '.join(missing)}: {fix}")
    else:
        yield Finding("ok", "services enabled")


def _accelerator(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    yield _offered(settings, gcloud, "accelerator-types", settings.accelerator_type)


def _image(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    yield _offered(settings, gcloud, "versions", settings.image)


def _offered(settings: Settings, gcloud: Gcloud, kind: str, name: str) -> Finding:
    # Asked, not looked up in a table of ours: which zones have a generation changes, and Google's own pages lag behind.
    listed = gcloud.answer(
        [*commands.TPU, "tpu-vm", kind, "list", *commands.where(settings), "--format=json"], list[Named]
    )
    offered = sorted({each.name.rsplit("/", 1)[-1] for each in listed})
    if name in offered:
        return Finding("ok", f"{settings.zone} offers {name}")
    shown = ", ".join(offered) or "none"
    return Finding("problem", f"{settings.zone} does not offer {name}: choose another zone, or one of {shown}")


def _bucket(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    bucket = gcloud.answer(["storage", "buckets", "describe", f"gs://{settings.bucket}", "--format=json"], Bucket)
    region, place = settings.zone.rsplit("-", 1)[0], bucket.location.lower()
    if place == region:
        yield Finding("ok", f"bucket {settings.bucket} is in {place}")
    else:
        yield Finding(
            "warning",
            f"bucket {settings.bucket} is in {place or 'an unknown region'}, the machine in {region}: every checkpoint "
            f"costs about ${_DOLLARS_PER_GB:.2f} per GB or more and is slow; create a bucket there: gcloud storage "
            f"buckets create gs://NAME --location={region} --uniform-bucket-level-access "
            f"--soft-delete-duration=0 --project={settings.project}",
        )
    # A run replaces a checkpoint of 1 to 2 GB every ten minutes: within a week, a thousand of them.
    kept = bucket.soft_delete_policy.retentionDurationSeconds
    if days := int(kept) // _DAY if kept.isdecimal() else 0:
        yield Finding(
            "warning",
            f"bucket {settings.bucket} keeps deleted checkpoints for {counted(days, 'days')} and charges for them: "
            f"gcloud storage buckets update gs://{settings.bucket} --clear-soft-delete",
        )


def _writable(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    gcloud.ask(commands.write(f"{settings.run_url}/preflight"), "can be written\n")
    yield Finding("ok", f"{settings.run_url} can be written")


def _data(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    lengths = [phase.config.data.max_seq_length for phase in config.phases]
    for url, length in zip([settings.data, settings.long_data], lengths, strict=False):
        if not url:
            yield Finding("problem", "the configuration has a second phase (long_phase.steps): set long_data")
            continue
        try:
            there = gcloud.answer(commands.read(f"{url}/manifest.json"), Manifest).max_seq_length
        except GcloudError as error:
            what = "is missing" if error.is_not_found else "is not a manifest, or cannot be read"
            yield Finding("problem", f"{url}/manifest.json {what} ({error}): make shards with electra-data shard")
            continue
        if there == length:
            yield Finding("ok", f"{url}: sequences of {there} tokens")
        else:
            text = f"{url}: sequences of {there} tokens, but the configuration has {length}: change one of them"
            yield Finding("problem", text)


def _identity(settings: Settings, config: Config, gcloud: Gcloud) -> Iterator[Finding]:
    yield Finding(*check_identity(settings, gcloud))


# {name: (check, the checks without which it fails of the same cause)}, in the order in which they are told.
_CHECKS: dict[str, tuple[Callable[[Settings, Config, Gcloud], Iterator[Finding]], tuple[str, ...]]] = {
    "login (gcloud auth login)": (_login, ()),
    "project": (_project, ()),
    "services": (_services, ("project",)),
    "accelerator type": (_accelerator, ("project", "services")),
    "runtime version": (_image, ("project", "services", "accelerator type")),
    "bucket": (_bucket, ()),
    "writing to the bucket": (_writable, ("bucket",)),
    "identity of the machines": (_identity, ("project", "bucket")),
    "data": (_data, ()),
}


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
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode or not done.stdout.strip():
        return [Finding("warning", f"electra-flax plan failed ({last}): memory and cost are not checked")]
    text = done.stdout if done.stdout.lstrip().startswith("[") else f"[{done.stdout}]"  # of one phase, or several
    phases = parse_json(text, list[PhasePlan], "electra-flax plan", "report it", is_ours=False)
    found = []
    for each in phases:
        if not each.fits:
            ways = "; ".join(str(way["change"]) for way in each.ways_out) or "a larger slice"
            found.append(Finding("problem", f"the train step does not fit on {settings.accelerator_type}: {ways}"))
    dollars = sum(each.predicted_dollars or 0 for each in phases)
    days = sum(each.predicted_days or 0 for each in phases)
    return found + _budget(settings, dollars, days, config, history.load(settings, gcloud))


def _budget(settings: Settings, dollars: float, days: float, config: Config, past: history.History) -> list[Finding]:
    """Return whether max_dollars are enough for the steps that are left."""
    found = []
    if not settings.price_is_known:
        text = (
            f"no known price of {settings.capacity} {settings.accelerator_type} in {settings.zone}: counting "
            f"${settings.price:,.2f} an hour ({settings.price_source}); set dollars_per_hour"
        )
        found.append(Finding("warning", text))
    left = max(0.0, 1 - past.step / config.training.num_steps)
    # To the last time that is written down: this computer's clock is not the bucket's.
    now = max((machine.gone or machine.there or machine.asked for machine in past.machines), default=0.0)
    spent = past.spent(now)
    needed = spent + left * dollars
    rate = f"${settings.price:,.2f} an hour ({settings.price_source})"
    text = f"predicted, not measured: {duration(86_400 * days)}, ${dollars:,.0f} at {rate}"
    if past.step:
        text += f"; at step {past.step:,}: about ${spent:,.0f} spent, ${left * dollars:,.0f} to go"
    if needed <= settings.max_dollars:
        return [*found, Finding("ok", text)]
    text += (
        f": max_dollars={settings.max_dollars:g} would stop the run at {settings.max_dollars / needed:.0%}: raise it "
        f"to about {needed * 1.2:,.0f} (preempted machines cost too), or start anyway with --no-plan"
    )
    return [*found, Finding("problem", text)]
