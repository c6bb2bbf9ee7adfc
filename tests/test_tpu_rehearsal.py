"""`make tpu-train` from nothing to exported models on this machine: Google's API and storage are stand-ins, machines
are sandboxes that boot the real startup.sh and train with the real trainer on CPU devices."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from gcloud_tools import HAS_GCLOUD, real_environment
from run_tools import make_shards, records
from tpu_api import FakeTpuApi
from tpu_sandbox import Machine, can_have_namespaces

from data_prep.cli import main as data_main
from electra_flax.config.loading import load_config
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not HAS_GCLOUD, reason="NOT CHECKED: the rehearsal on Cloud TPU needs gcloud"),
    pytest.mark.skipif(
        not can_have_namespaces(), reason="NOT CHECKED: the rehearsal on Cloud TPU needs mount namespaces (root)"
    ),
]

ROOT = Path(__file__).parents[1]


class Rehearsal:
    """A launcher, and the machines that it is given."""

    disk: Path | None = None
    """What the first machine of all installed, for minutes; the others begin with it."""

    def __init__(self, root, shards, config, storage, name, accelerator, workers, overrides):
        self.root, self.name, self.workers = root, name, workers
        self.shards, self.config, self.overrides = shards, config, overrides
        self.machines = []
        self.api = FakeTpuApi(self._created, self._lost)
        self.environment = {**os.environ, **real_environment(self.api, storage, root / "home")}
        (root / "home").mkdir(parents=True)
        self.gcloud("storage", "cp", *map(str, shards.iterdir()), f"gs://bucket/{name}/shards/")
        (root / "tpu.yaml").write_text(
            f"{{project: my-project, zone: us-central1-a, bucket: bucket, data: 'gs://bucket/{name}/shards', "
            f"name: {name}, max_dollars: 50, config: {config}, "
            f"accelerator_type: {accelerator}, models: {root / 'models'}, "
            f"overrides: {json.dumps(overrides)}, "
            "restarts_without_progress: 3, boot_minutes: 20}\n"
        )

    def gcloud(self, *arguments):
        done = subprocess.run(["gcloud", *arguments], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or "matched no" in done.stderr, done.stderr
        return done.stdout

    def _created(self, name, node):
        generation = len(self.machines) // self.workers
        for number in range(self.workers):
            root = self.root / f"machine-{generation}-{number}"
            self.machines.append(Machine(root, node, number, self.workers, self.environment, Rehearsal.disk))

    def _lost(self, name):
        for machine in self.machines:
            machine.lose()

    @property
    def current(self):
        return self.machines[-self.workers :]

    def preempt(self):
        """As Google does: the machine is gone, its name remains."""
        Rehearsal.disk = self.machines[0].root
        self.api.nodes[self.name]["state"] = "PREEMPTED"
        self.api.requests[self.name]["state"] = {"state": "SUSPENDED"}
        self._lost(self.name)

    def step(self):
        """What worker 0 of the machine at hand last said."""
        command = ["gcloud", "storage", "cat", f"gs://bucket/runs/{self.name}/status/worker-0.json"]
        read = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        node = self.api.nodes.get(self.name)
        try:
            status = json.loads(read.stdout) if read.returncode == 0 else {}
        except ValueError:  # cut off: replaced while it is read, or its machine was lost while writing it
            status = {}
        there = node and status.get("machine") == node["metadata"]["electra-machine"]
        return status.get("step", 0) if there else 0

    def wait_for_step(self, step, train, seconds=900):
        until = time.time() + seconds
        while self.step() < step:
            assert train.poll() is None, self.said()
            assert time.time() < until, self.said()
            time.sleep(1)

    def said(self):
        return "\n".join([(self.root / "train.log").read_text(), *(machine.said() for machine in self.current)])

    @contextlib.contextmanager
    def training(self):
        """make tpu-train, as a user runs it."""
        command = ["make", "--no-print-directory", "tpu-train", f"TPU={self.root / 'tpu.yaml'}",
                   f"VENV={Path(sys.executable).parents[1]}", "ARGS=--poll-seconds 2 --no-plan"]  # fmt: skip
        with self.api, (self.root / "train.log").open("w") as log:
            self.environment.update(self.api.environment(self.root / "home"))
            train = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                yield train
            finally:
                if train.poll() is None:
                    train.terminate()
                    train.wait()
                self._lost(self.name)

    def state(self):
        checkpoints = Checkpoints(Workdir(f"gs://bucket/runs/{self.name}/workdir").checkpoints)
        config = load_config(self.root / "undisturbed/config.yaml")
        return jax.device_get(checkpoints.restore(abstract_state(config), make_mesh(config.mesh)))

    def undisturbed(self, devices):
        """The same run, here, by itself."""
        out = self.root / "undisturbed"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        subprocess.run(
            [Path(sys.executable).with_name("electra-flax"), "pretrain", "--config", self.config, "--data",
             self.shards, "--workdir", out, *self.overrides],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        return out


def test_the_demo_survives_a_reboot_a_halted_accelerator_and_a_preemption_and_ends_with_its_models(
    tmp_path, sample_corpus, google_storage, monkeypatch
):
    for name, value in google_storage.items():
        monkeypatch.setenv(name, value)
    vocab, shards = str(tmp_path / "vocab"), tmp_path / "shards"
    assert data_main(["vocab", "--corpus", str(sample_corpus), "--out", vocab, "--size", "2000", "--unused", "20"]) == 0
    split = ["--max-seq-length", "64", "--validation-fraction", "0.1", "--workers", "1"]
    assert data_main(["shard", "--corpus", str(sample_corpus), "--vocab", vocab, "--out", str(shards), *split]) == 0
    overrides = ["--checkpoint.every_steps=20"]  # of 400
    run = Rehearsal(
        tmp_path, shards, ROOT / "configs/demo.yaml", google_storage, "preempted", "v3-8", 1, overrides
    )  # fmt: skip
    with run.training() as train:
        run.wait_for_step(random.randint(25, 60), train)
        run.machines[0].reboot()
        run.wait_for_step(random.randint(80, 120), train)
        assert run.machines[0].halt_accelerator()
        run.wait_for_step(random.randint(160, 300), train)
        reached = run.step()
        run.preempt()
        assert train.wait(900) == 0, run.said()
    said = (tmp_path / "train.log").read_text()
    assert "the queued request is SUSPENDED" in said or "the machine is PREEMPTED" in said
    assert "the machine preempted is deleted" in said and not run.api.nodes and not run.api.requests
    assert len(run.machines) == 2
    for machine, times in zip(run.machines, (2, 1), strict=True):  # the first: after the reboot, and after the halt
        log = (machine.root / "opt/electra-flax/worker.log").read_text()
        assert log.count("continuing from step") == times, f"preempted at {reached}: {log}"
    assert (
        "unexpected error: JaxRuntimeError: INTERNAL: Accelerator device halted prematurely"
        in (run.machines[0].root / "opt/electra-flax/worker.log").read_text()
    )
    failures = json.loads((run.machines[0].root / "opt/electra-flax/failures.json").read_text())
    assert failures["in_a_row"] == 0 and failures["step"] >= 80, "a step was gained before it: no word against it"

    straight = run.undisturbed(8)
    config = load_config(straight / "config.yaml")
    expected = jax.device_get(
        Checkpoints(straight / "checkpoints").restore(abstract_state(config), make_mesh(config.mesh))
    )
    for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(run.state()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert records(tmp_path, "gs://bucket/runs/preempted/workdir", "train") == records(tmp_path, str(straight), "train")

    import transformers

    for part, cls in (("discriminator", "FlaxElectraForPreTraining"), ("generator", "FlaxElectraForMaskedLM")):
        with jax.numpy_rank_promotion("allow"):
            getattr(transformers, cls).from_pretrained(tmp_path / "models" / part)


def test_a_pod_of_two_goes_on_when_one_worker_is_killed(tmp_path, sample_corpus, google_storage, monkeypatch):
    for name, value in google_storage.items():
        monkeypatch.setenv(name, value)
    make_shards(tmp_path, sample_corpus)
    overrides = ["--training.num_steps=20", "--checkpoint.every_steps=5"]
    run = Rehearsal(
        tmp_path, tmp_path / "shards", tmp_path / "tiny.yaml", google_storage, "pod", "v3-16", 2, overrides
    )  # fmt: skip
    with run.training() as train:
        run.wait_for_step(6, train)
        assert run.current[1].kill_trainer()
        assert train.wait(900) == 0, run.said()
    assert len(run.machines) == 2, "the machines were good: systemd started the trainer again"
    log = run.gcloud("storage", "cat", "gs://bucket/runs/pod/logs/worker-1.log")
    assert "continuing from step" in run.gcloud("storage", "cat", "gs://bucket/runs/pod/logs/worker-0.log"), log
    assert not run.api.nodes and (tmp_path / "models/generator/config.json").exists()
