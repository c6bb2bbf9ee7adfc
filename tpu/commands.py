"""Settings -> the argument lists of gcloud. Pure functions: what they return is what `--dry-run` prints.

Nothing is ever joined to a string for a shell, and every value is one argument, `--flag=value`.
"""

from pathlib import Path

from tpu.settings import Settings

TPU = ["compute", "tpus"]
# As gcloud passes it on: it expands no short names for TPUs.
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"

Command = list[str]


def create(settings: Settings, machine: str, code: str, startup_script: Path) -> Command:
    """Return what asks for a machine.

    `machine` tells this machine from the ones before it, `code` is the folder of what it shall run.

    gcloud waits until Google has said yes or no (a request: seconds; a machine by itself: minutes), so that a refusal
    comes with its reason.
    """
    metadata = {
        "electra-run": settings.run_url,
        "electra-code": code,
        "electra-machine": machine,
        "electra-devices": str(settings.slice.num_devices),
        "electra-workers": str(settings.num_workers),
    }
    shared = [
        f"--accelerator-type={settings.accelerator_type}",
        f"--metadata={','.join(f'{key}={value}' for key, value in metadata.items())}",
        f"--metadata-from-file=startup-script={startup_script}",
        f"--scopes={_SCOPE}",
        f"--labels={','.join(['electra-run=' + settings.name, *settings.labels])}",
        *_given("--service-account", settings.service_account),
        *_given("--network", settings.network),
        *_given("--subnetwork", settings.subnetwork),
        *([] if settings.external_ips else ["--internal-ips"]),
        *{"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[settings.capacity],
        *where(settings),
    ]
    if settings.mode == "plain":
        return [*TPU, "tpu-vm", "create", settings.name, f"--version={settings.image}", *shared]
    minutes = max(1, round(60 * settings.queue_hours))
    return [
        *TPU, "queued-resources", "create", settings.name, f"--node-id={settings.name}",
        f"--runtime-version={settings.image}", f"--valid-until-duration={minutes}m", *shared,
    ]  # fmt: skip


def delete(settings: Settings) -> list[Command]:
    """Return what deletes the request and its machine, or the machine alone.

    What is not there is no error to whoever runs these.
    """
    node = [*TPU, "tpu-vm", "delete", settings.name, "--quiet", *where(settings)]
    if settings.mode == "plain":
        return [node]
    return [[*TPU, "queued-resources", "delete", settings.name, "--force", "--quiet", *where(settings)], node]


def describe_node(settings: Settings) -> Command:
    return [*TPU, "tpu-vm", "describe", settings.name, *where(settings), "--format=json"]


def describe_request(settings: Settings) -> Command:
    return [*TPU, "queued-resources", "describe", settings.name, *where(settings), "--format=json"]


def ssh(settings: Settings, worker: str, command: str) -> Command:
    """Return what connects; `command` is for the shell there; "" opens one."""
    return [
        *TPU, "tpu-vm", "ssh", settings.name, f"--worker={worker}", *where(settings),
        *([] if settings.external_ips else ["--internal-ip"]), *([f"--command={command}"] if command else []),
    ]  # fmt: skip


def where(settings: Settings) -> Command:
    return [f"--zone={settings.zone}", f"--project={settings.project}"]


def upload(files: list[Path], folder: str) -> Command:
    return ["storage", "cp", *map(str, files), f"{folder}/"]


def write(url: str) -> Command:
    """Return what writes an object, from the standard input."""
    return ["storage", "cp", "-", url]


def read(url: str) -> Command:
    """Return what reads an object, or several by a pattern, one after the other."""
    return ["storage", "cat", url]


def times(urls: list[str]) -> Command:
    """Return what tells when each object was last written, by the bucket's clock."""
    return ["storage", "objects", "list", *urls, "--format=json(name,update_time)"]


def download(folder: str, out: Path) -> Command:
    return ["storage", "cp", "--recursive", f"{folder}/*", str(out)]


def _given(flag: str, value: str) -> Command:
    return [f"{flag}={value}"] if value else []
