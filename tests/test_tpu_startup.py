"""startup.sh where things go wrong, booted in namespaces of its own, with everything that it calls stubbed."""

import os
import re
import subprocess

import pytest
from metadata_server import MetadataServer
from tpu_sandbox import HUGEPAGES, PLACES, can_have_namespaces

from tpu.package import STARTUP_SCRIPT

pytestmark = pytest.mark.skipif(
    not can_have_namespaces(), reason="NOT CHECKED: startup.sh by itself needs mount namespaces (root)"
)

ATTRIBUTES = {
    "electra-run": "gs://bucket/runs/x", "electra-code": "gs://bucket/runs/x/code/abc", "electra-machine": "m1",
    "electra-devices": "8", "electra-workers": "4",
}  # fmt: skip
# Brings a wheel and a lock; keeps what it is told.
GCLOUD = """#!/bin/bash
case "$*" in
*/status/*) cat /opt/electra-flax/status.json >>/opt/told ;;
*/logs/*) ;;
*) cd "${!#}" && echo 3.99 >python-version && touch requirements-tpu.lock electra_flax-1.whl electra-flax.service &&
  sha256sum -- * >/tmp/sums && mv /tmp/sums SHA256SUMS ;;
esac
"""
PYTHON = """#!/bin/bash
echo "$0 $*" >>/opt/calls
case "$*" in
*"-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/pip" && cp "$0" "${!#}/bin/python" ;;
esac
"""
PIP = """#!/bin/bash
echo "python3 $*" >>/opt/calls
[[ ! "$*" =~ $FAILS ]] || exit 7
[[ "$*" != *"-m pip install"* ]] || install -D /usr/local/sbin/uv /opt/electra-flax/uv/bin/uv
"""
UV = """#!/bin/bash
echo "uv $*" >>/opt/calls
[[ ! "$*" =~ $FAILS ]] || exit 7
[ "$FAILS" != nothing-there ] || exit 0
mkdir -p /opt/electra-flax/pythons/cpython/bin
cp /usr/local/sbin/python3.99 /opt/electra-flax/pythons/cpython/bin/
"""
STUBS = {
    "gcloud": GCLOUD, "python3": PIP, "uv": UV, "python3.99": PYTHON, "sleep": "#!/bin/bash\n",
    "systemctl": '#!/bin/bash\necho "systemctl $*" >>/opt/calls\n',
    "apt-get": '#!/bin/bash\necho "apt-get $*" >>/opt/calls\n[[ ! "$*" =~ $FAILS ]] || exit 7\n',
}  # fmt: skip


@pytest.fixture
def boot(tmp_path):
    """Boots; (exit code, what it told the bucket, its calls, its log, the unit's environment)."""
    metadata = []

    def run(attributes=None, failures=None, fails="nothing"):
        server = MetadataServer({**ATTRIBUTES, **(attributes or {})})
        server.failures = failures or {}
        metadata.append(server)
        for name in {*PLACES, "hugepages"}:
            (tmp_path / name).mkdir()
        (tmp_path / "hugepages/enabled").write_text("madvise")
        for name, text in STUBS.items():
            (tmp_path / "sbin" / name).write_text(text)
            (tmp_path / "sbin" / name).chmod(0o755)
        mounts = "; ".join(f"mount --bind {tmp_path / name} {place}" for name, place in PLACES.items())
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private",
             "bash", "-c", f"set -e; {mounts}; bash {STARTUP_SCRIPT}"],
            env={**os.environ, "GCE_METADATA_HOST": server.address, "FAILS": fails},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

        def read(name):
            return (tmp_path / name).read_text() if (tmp_path / name).exists() else ""

        return done.returncode, read("opt/told"), read("opt/calls"), done.stdout, read("opt/electra-flax/environment")

    yield run
    for server in metadata:
        server.close()


def test_a_boot_starts_the_service_with_what_it_needs(boot, tmp_path):
    code, told, calls, log, environment = boot({"agent-worker-number": "2"})
    assert code == 0, log
    assert '"worker": 2, "phase": "installing"' in told and "sick" not in told
    assert "uv python install" in calls and "systemctl start --no-block electra-flax.service" in calls
    assert {"ELECTRA_WORKER=2", "ELECTRA_WORKERS=4", "JAX_COORDINATOR_PORT=8476"} <= set(environment.split("\n"))
    assert not HUGEPAGES.is_dir() or (tmp_path / "hugepages/enabled").read_text() == "always\n"


@pytest.mark.parametrize(
    ("attributes", "failures", "worker"),
    [
        ({}, {}, "0"),  # 404: a machine by itself
        ({"agent-worker-number": "3"}, {"agent-worker-number": 4, "electra-run": 2}, "3"),
        ({}, {"agent-worker-number": 4}, "0"),
    ],
)
def test_only_a_404_makes_a_machine_the_first_worker(boot, attributes, failures, worker):
    code, told, _, log, environment = boot(attributes, failures)
    assert code == 0 and f"ELECTRA_WORKER={worker}\n" in environment, log
    assert set(re.findall(r'"worker": (\d+)', told)) == {worker}


@pytest.mark.parametrize(
    ("attributes", "failures"),
    [({"agent-worker-number": "3"}, {"agent-worker-number": 99}), ({"electra-run": None}, {})],
)
def test_metadata_that_stay_away_make_it_nobody(boot, attributes, failures):
    code, told, calls, log, environment = boot(attributes, failures)
    assert (code, told, calls, environment) == (1, "", "", ""), log
    assert "failed (9): ask" in log


@pytest.mark.parametrize(
    "fails",
    ["-m pip install", "python install", "nothing-there", "pip --version| update", "pip --version|python3-pip"],
)
def test_a_step_that_fails_ends_it_there_and_says_so(boot, fails):
    """Also inside of a function, which would go on after a failure where it is called in a condition."""
    code, told, calls, log, environment = boot(fails=fails)
    assert code != 0 and environment == "" and "systemctl start" not in calls, log
    assert '"phase": "sick", ' in told and "failed while installing Python" in told.split("\n")[-2]
    last = {"-m pip install": "python3 ", "python install": "uv ", "nothing-there": "uv "}.get(fails, "apt-get ")
    assert calls.split("\n")[-2].startswith(last), "nothing after what failed"
