"""Whether this machine belongs to a TPU of several hosts: what the environment says, else Google's metadata server."""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from electra_flax.errors import Unavailable
from electra_flax.runtime.interruption import metadata_host

log = logging.getLogger("electra_flax")

_SECONDS = 5.0  # for an answer
_PAUSES_ON_A_VM = (1.0, 4.0, 15.0, 30.0)  # a server that is away for a moment
_PAUSES_ELSEWHERE = (1.0,)
# In a container (Kaggle, Colab) on one of Google's machines the server may well be out of reach for good.
_CONTAINERS = ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "KUBERNETES_SERVICE_HOST")
_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")


def names_hosts() -> bool:
    """Return whether something here tells JAX who the hosts of this TPU are.

    Raises Unavailable where a Cloud VM's own metadata server does not answer: a host that went on alone would be
    missed by the others.
    """
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        return False
    return _has_worker_number()


def _has_worker_number() -> bool:
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # where JAX asks
    url = f"http://{host}/computeMetadata/v1/instance/attributes/agent-worker-number"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    is_vm = metadata_host() is not None and not _in_container()
    problem = ""
    for pause in (*(_PAUSES_ON_A_VM if is_vm else _PAUSES_ELSEWHERE), None):
        try:
            with direct.open(request, timeout=_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            if error.code == 404:  # a machine of Google's that is no host of a Cloud TPU
                return False
            problem = str(error)
        except OSError as error:
            problem = str(error)
        if pause is not None:
            time.sleep(pause)
    if is_vm:
        raise Unavailable(
            f"the metadata server {host} does not say which host of the TPU this is ({problem}): try the same command "
            "again; if this host is a TPU by itself, set TPU_SKIP_MDS_QUERY=1"
        )
    log.info("no metadata server here (%s): this host is a TPU by itself", problem)
    return False


def _in_container() -> bool:
    return any(name in os.environ for name in _CONTAINERS) or any(Path(name).exists() for name in _CONTAINER_FILES)
