"""What a machine runs, in one folder of the bucket that is named by its content: wheel, lock, configuration, worker."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from electra_flax.config.loading import config_to_yaml
from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from tpu import commands
from tpu.gcloud import Gcloud
from tpu.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
STARTUP_SCRIPT = ROOT / "tpu/startup.sh"
LOCK = "requirements-tpu.lock"
SUMS = "SHA256SUMS"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of the machines: what this one has, so that the lock means the same versions there. Google's images have 3.10."""
# The day of the first commit: the same files make the same wheel, and the same folder.
_EPOCH = {"SOURCE_DATE_EPOCH": "1763942400"}


def build(settings: Settings, config: Config, folder: Path) -> str:
    """Fill `folder`; return the name that its content gives it. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would put in what it finds there, also what is gone
    _run("the wheel", [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(folder), str(ROOT),
    ])  # fmt: skip
    for path in (ROOT / LOCK, ROOT / "tpu/worker.py", ROOT / "tpu/electra-flax.service"):
        shutil.copyfile(path, folder / path.name)
    (folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    (folder / "python-version").write_text(PYTHON + "\n", encoding="utf-8")
    run = {
        "data": settings.data, "long_data": settings.long_data,
        "environment": dict(pair.split("=", 1) for pair in settings.environment),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run) + "\n", encoding="utf-8")
    if settings.wheelhouse:
        _add_wheelhouse(folder)
    # Machines check these sums, and the name is made of them: a running machine's code is never overwritten by a newer.
    lines = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / SUMS).write_text(lines, encoding="utf-8")
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def upload(settings: Settings, gcloud: Gcloud, folder: Path, name: str) -> str:
    """Bring the folder to the bucket, unless it is there; return its gs:// address. Raises GcloudError."""
    url = f"{settings.run_url}/code/{name}"
    if not gcloud.dry_run and gcloud.find(commands.read(f"{url}/{SUMS}")):
        return url
    files = [path for path in sorted(folder.iterdir()) if path.name != SUMS]
    gcloud.do(commands.upload(files, url))
    gcloud.do(commands.upload([folder / SUMS], url))  # the last one: with it the folder is whole
    return url


def _add_wheelhouse(folder: Path) -> None:
    """Add Python and every package of the lock, for machines without internet."""
    if sys.platform != "linux":
        raise UserError("wheelhouse: true: the packages of the lock for Linux can be collected on Linux alone")
    print("collecting Python and all packages for machines without internet (half a GB, minutes)", file=sys.stderr)
    # Every name of what runs on Ubuntu 22.04 (glibc 2.35), old ones too: pip takes no "or older".
    names = [*(f"manylinux_2_{minor}" for minor in range(5, 36)), "manylinux1", "manylinux2010", "manylinux2014"]
    platforms = [f"--platform={name}_x86_64" for name in names]
    _run("the packages", [
        sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:",
        f"--python-version={PYTHON}", *platforms, "--dest", str(folder), "-r", str(ROOT / LOCK),
    ])  # fmt: skip
    place = folder / "python"
    _run("Python", ["uv", "python", "install", f"cpython-{PYTHON}-linux-x86_64-gnu", "--install-dir", str(place)])
    (found,) = [path for path in place.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    # One file: a bucket keeps neither links nor modes.
    with tarfile.open(folder / "python.tar.gz", "w:gz") as archive:
        archive.add(found, "python")
    shutil.rmtree(place)


def _run(what: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_EPOCH})
    except FileNotFoundError:
        raise UserError(f"{what} for the machines cannot be made: {command[0]} is not installed") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"{what} for the machines cannot be made: {last}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
