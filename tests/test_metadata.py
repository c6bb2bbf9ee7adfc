"""Whether a host has others: what the environment says, what a metadata server says, and where there is none."""

import jax
import pytest
from metadata_server import MetadataServer, pod_attributes

from electra_flax.errors import Unavailable, UserError
from electra_flax.runtime import metadata, processes


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch):
    """On a VM, outside of any container, with nothing said."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")  # where nothing listens
    monkeypatch.setattr(metadata, "_PAUSES_ON_A_VM", (0.0, 0.0))
    monkeypatch.setattr(metadata, "_PAUSES_ELSEWHERE", (0.0,))
    monkeypatch.setattr(metadata, "_in_container", lambda: False)


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
    ],
)
def test_the_environment_is_believed_without_a_question(environment, answer, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert metadata.names_hosts() == answer


def test_a_server_that_knows_the_host_and_one_that_does_not(monkeypatch):
    for attributes, answer in ((pod_attributes(0, 2), True), ({}, False)):
        server = MetadataServer(attributes)
        monkeypatch.setenv("GCE_METADATA_IP", server.address)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert metadata.names_hosts() == answer
        server.close()


def test_a_vm_whose_server_is_away_must_not_go_on_alone():
    with pytest.raises(Unavailable, match="does not say which host .*try the same command again.*TPU_SKIP_MDS_QUERY=1"):
        metadata.names_hosts()


@pytest.mark.parametrize("where", ["a container on a VM", "no machine of Google's"])
def test_without_metadata_a_host_is_alone(where, monkeypatch):
    if where.startswith("a container"):
        monkeypatch.setattr(metadata, "_in_container", lambda: True)
    else:
        monkeypatch.setattr(metadata, "metadata_host", lambda: None)
    assert not metadata.names_hosts()
    monkeypatch.setattr(processes, "_on_tpu_vm", lambda: True)
    processes.join(None)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionError("metadata.google.internal: gone"), Unavailable),  # requests' errors are OSErrors too
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier"), Unavailable),
        (RuntimeError("Getting metadata['tpu-env'] failed for 6 tries"), Unavailable),
        (ValueError("coordinator_address should be defined"), Unavailable),
    ],
)
def test_whatever_fails_in_joining_may_succeed_again(raised, expected, monkeypatch):
    def initialize(*arguments, **options):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "_on_tpu_vm", lambda: True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host0,host1")
    with pytest.raises(expected, match="cannot reach the other hosts") as found:
        processes.join(None)
    assert found.value.exit_code == 70
    group = UserError if isinstance(raised, ValueError) else expected
    with pytest.raises(group, match="process 0 at host0:1") as found:
        processes.join(("host0:1", 2, 0))
    assert found.value.exit_code == group.exit_code
