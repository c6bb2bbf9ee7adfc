"""A machine that boots startup.sh for real: a mount and a process namespace of its own, with apt, systemd and the
metadata server stubbed. Ending its first process ends all of it at once, as losing a machine does."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from metadata_server import MetadataServer, pod_attributes

PLACES = {"opt": "/opt", "units": "/etc/systemd/system", "log": "/var/log", "sbin": "/usr/local/sbin"}
HUGEPAGES = Path("/sys/kernel/mm/transparent_hugepage")
if HUGEPAGES.is_dir():  # this machine's stays as it is
    PLACES["hugepages"] = str(HUGEPAGES)

# Everything of systemd that startup.sh asks for and the unit says: starts it, starts it again after failures.
SYSTEMCTL = """#!{python}
import configparser, os, shlex, signal, subprocess, sys, time
if sys.argv[1] != "start":
    sys.exit(0)
if os.fork():
    sys.exit(0)
os.setsid()
unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
unit.optionxform = str
unit.read("/etc/systemd/system/" + sys.argv[-1])
service = unit["Service"]
environment = dict(line.strip().split("=", 1) for line in open(service["EnvironmentFile"]))
final = [0, *map(int, service["RestartPreventExitStatus"].split())]
log = open("/var/log/service.log", "a")
process = None
def stop(number, frame):
    final.extend(range(256))
    process.send_signal(signal.SIGTERM)
signal.signal(signal.SIGTERM, stop)
for start in range(int(unit["Unit"]["StartLimitBurst"])):
    process = subprocess.Popen(shlex.split(service["ExecStart"]), cwd=service["WorkingDirectory"],
                               env={{**os.environ, **environment}}, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    if process.wait() in final:
        break
    time.sleep(float(os.environ["RESTART_SECONDS"]))
"""
APT = "#!/bin/bash\necho apt-get is not to be needed here >&2\nexit 1\n"
# A network that comes late: the first two calls fail.
GCLOUD = """#!/bin/bash
count=$(cat /var/log/calls 2>/dev/null || echo 0)
echo $((count + 1)) >/var/log/calls
[ "$count" -ge 2 ] || {{ echo "ERROR: connection reset" >&2; exit 1; }}
exec {gcloud} "$@"
"""
# JAX asks no metadata where it finds no chips. SIGUSR1 halts the accelerator: what JAX then raises comes out of
# whatever the trainer does.
SITECUSTOMIZE = """
import os, signal
def halt(number, frame):
    places = []
    while frame:
        places.append(frame.f_code.co_filename + frame.f_code.co_name)
        frame = frame.f_back
    in_loop = any(place.endswith("electra_flax/training/loop.py_steps") for place in places)
    if not in_loop or any("weakref" in place or place.endswith("__del__") for place in places):
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # Python would swallow it in a callback
        return
    import jax
    raise jax.errors.JaxRuntimeError("INTERNAL: Accelerator device halted prematurely")
signal.signal(signal.SIGUSR1, halt)
signal.signal(signal.SIGALRM, halt)
if os.environ.get("JAX_FORCE_TPU_INIT"):
    try:
        import jax
        os.environ.pop("TPU_SKIP_MDS_QUERY", None)
    except ImportError:
        pass
"""


def can_have_namespaces():
    return shutil.which("unshare") is not None and (
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


class Machine:
    """One worker. Boots at once."""

    def __init__(self, root: Path, node: dict, number: int, workers: int, environment: dict, disk: Path | None = None):
        """`disk` is what an earlier machine installed: an environment is not made again, which takes minutes."""
        self.root = root
        self.metadata = MetadataServer({**node["metadata"], **pod_attributes(number, workers)})
        for name in PLACES:
            (root / name).mkdir(parents=True)
        place = root / "opt/electra-flax"
        place.mkdir()
        (place / "python").symlink_to(sys.base_prefix)  # as an image with a Python that JAX takes
        if disk is not None:
            for environment_folder in disk.glob("opt/electra-flax/venv-*"):
                subprocess.run(["cp", "--archive", "--link", environment_folder, place], check=True)
        stubs = {
            "systemctl": SYSTEMCTL.format(python=sys.executable), "apt-get": APT,
            "gcloud": GCLOUD.format(gcloud=shutil.which("gcloud")),
        }  # fmt: skip
        for name, text in stubs.items():
            (root / "sbin" / name).write_text(text)
            (root / "sbin" / name).chmod(0o755)
        (root / "site").mkdir()
        (root / "site/sitecustomize.py").write_text(SITECUSTOMIZE)
        script = root / "startup.sh"
        script.write_text(node["metadata"]["startup-script"])
        mounts = [f"mount --rbind {root / name} {place}" for name, place in PLACES.items()]
        for folder in Path("/opt").iterdir():  # what this machine has there, packages perhaps
            if folder.is_dir():
                (root / "opt" / folder.name).mkdir(exist_ok=True)
                mounts.insert(0, f"mount --bind {folder} {root / 'opt' / folder.name}")
        pod = {"JAX_FORCE_TPU_INIT": "1", "GCE_METADATA_IP": self.metadata.address} if workers > 1 else {}
        self._command = [
            "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
            "bash", "-c", f"set -e; {'; '.join(mounts)}; bash {script} || true; exec sleep infinity",
        ]  # fmt: skip
        self._environment = {
            **environment, **pod, "GCE_METADATA_HOST": self.metadata.address, "PYTHONPATH": str(root / "site"),
            "ELECTRA_BEAT_SECONDS": "1", "RESTART_SECONDS": "2", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8",
        }  # fmt: skip
        self._boot()

    def _boot(self):
        with (self.root / "console.log").open("a") as console:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
            )

    def reboot(self):
        """As after a crash of its kernel: every process ends at once, the disk stays."""
        self._end()
        self._boot()

    def halt_accelerator(self):
        """An exception inside of a training step; whether a trainer ran."""
        return self.kill_trainer(signal.SIGUSR1)

    def kill_trainer(self, number=signal.SIGKILL):
        """A signal to the trainer alone; whether it ran."""
        listed = subprocess.run(["pgrep", "-f", "electra-flax pretrain"], capture_output=True, text=True).stdout.split()
        ours = [int(pid) for pid in listed if self._has(int(pid))]
        for pid in ours:
            os.kill(pid, number)
        return bool(ours)

    def _has(self, pid):
        """Whether a process is one of this machine's."""
        try:
            return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{self._first()}/ns/mnt")
        except OSError:
            return False

    def _first(self):
        return subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True
        ).stdout.split()[0]  # fmt: skip

    def lose(self):
        """It is gone from one moment to the next."""
        self._end()
        self.metadata.close()

    def _end(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)  # --kill-child: the first process in there goes with it
            self.process.wait()

    def said(self):
        """What there is to read when something went wrong."""
        texts = [self.root / "console.log", *(self.root / "log").glob("*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in texts if path.exists())
