"""What a run on Cloud TPU is: every field, its meaning and what is allowed; tpu/tpu.yaml holds what differs."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from electra_flax.config.ranges import Range
from electra_flax.errors import UserError, check_numbers
from electra_flax.runtime.tpus import Price, Slice, parse_slice

_CHIPS_PER_HOST = 4  # of a pod

# What Google allows in a name of each kind. Nothing else reaches a command, so nothing in one can be misread.
_ALLOWED = {
    "project": (r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "lower-case letters, digits and hyphens (6 to 30)"),
    "zone": (r"[a-z]+-[a-z]+\d+-[a-z]", "a zone such as us-central1-a or europe-west4-a"),
    "name": (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "lower-case letters, digits and hyphens (up to 40), a letter first"),
    "bucket": (r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "a bucket's name, without gs://"),
    "runtime_version": (r"[a-z0-9.-]*", "a name such as tpu-ubuntu2204-base"),
    "service_account": (r"([a-z0-9-]+@[a-z0-9.-]+)?", "an e-mail address of a service account"),
    "network": (r"[a-z0-9/._-]*", "a network's name or path"),
    "subnetwork": (r"[a-z0-9/._-]*", "a subnetwork's name or path"),
    "data": (r"gs://[A-Za-z0-9][A-Za-z0-9/._-]*", "a folder gs://BUCKET/..., made with electra-data shard --out"),
    "long_data": (r"(gs://[A-Za-z0-9][A-Za-z0-9/._-]*)?", "a folder gs://BUCKET/..."),
    "config": (r"[^\x00-\x1f]+", "a preset, or a YAML file"),
    "labels": (r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}", "KEY=VALUE of lower-case letters, digits, _ and -"),
    "overrides": (r"--[a-z_]+\.[a-z_]+=[^\x00-\x1f]*", "--section.field=value"),
    "environment": (
        r"(?!ELECTRA_)[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f]*", "NAME=value, in one line; names with ELECTRA_ are taken",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A run on a TPU slice, recreated after every preemption."""

    project: str
    """Google Cloud project (its ID)."""
    zone: str
    """Zone of the TPU: us-central1-a, europe-west4-a ..."""
    bucket: str
    """Bucket in the region of the zone, without gs://; the run is kept in runs/NAME there."""
    data: str
    """Shards from electra-data shard: gs://BUCKET/..."""
    config: str
    """A preset (see electra-flax configs), or a YAML file."""
    max_dollars: Annotated[float, Range(0, 10**9, "(]")]
    """When the estimated cost reaches this, the machine is deleted and the run stops; it can continue later."""
    name: str = "electra"
    """Name of the run and its machine; the same name continues the same run."""
    accelerator_type: str = "v3-8"
    """v2-8, v3-8, v3-32, v4-8, v5litepod-8, v5p-8, v6e-8 ..."""
    runtime_version: str = ""
    """Image of the machine; "" for the default of the TPU generation."""
    capacity: Literal["spot", "on-demand", "reserved"] = "spot"
    """Spot is cheaper but may be preempted at any time; the run then continues on the next machine."""
    mode: Literal["queued", "plain"] = "queued"
    """queued waits for capacity; plain fails at once if there is none, and is tried again."""
    long_data: str = ""
    """Shards of the second phase (long_phase.steps)."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of the configuration: ["--training.num_steps=1000"]."""
    environment: list[str] = field(default_factory=list)
    """Environment variables of the trainer: ["LIBTPU_INIT_ARGS=--xla_tpu_enable_latency_hiding_scheduler=true"]; stored
    in the bucket in plain text, so no secrets."""
    service_account: str = ""
    """E-mail address of a service account with access to the bucket; "" for the project's default."""
    network: str = ""
    """VPC network; "" for the default one."""
    subnetwork: str = ""
    """Subnetwork; "" for the default one."""
    external_ips: bool = True
    """Give machines external addresses; without, they need wheelhouse or a Cloud NAT."""
    wheelhouse: bool = False
    """Upload Python and all packages (half a GB; needs uv here), for machines without internet."""
    labels: list[str] = field(default_factory=list)
    """Labels on your bill: ["team=nlp"]."""
    dollars_per_hour: Annotated[float, Range(0, 10**6)] = 0.0
    """Price of the whole slice; 0 for Google's price in this zone and capacity, or the nearest known one."""
    max_creations_per_hour: Annotated[int, Range(1, 60)] = 4
    """Most machines created within an hour."""
    queue_hours: Annotated[float, Range(0.01, 8760)] = 24.0
    """Hours that a queued request waits for capacity before it is made again."""
    boot_minutes: Annotated[float, Range(1, 1440)] = 40.0
    """Minutes within which every worker must start training, installation included; else the machine is replaced."""
    silent_minutes: Annotated[float, Range(1, 1440)] = 15.0
    """Minutes without a report from a worker after which the machine is replaced."""
    restarts_without_progress: Annotated[int, Range(1, 1000)] = 5
    """Machines in a row without a new step after which the run stops."""
    models: str = "models"
    """Local folder for the exported models."""
    delete_when_done: bool = True
    """Delete the machine when the models are copied, and when the run failed."""

    def __post_init__(self) -> None:
        for name, (pattern, expected) in _ALLOWED.items():
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if not re.fullmatch(pattern, value):
                    shown = repr(value) if len(value) <= 100 else f"{value[:60]!r}..."
                    raise UserError(f"{name}={shown}: expected {expected}")
        check_numbers(self)
        self.slice  # noqa: B018 raises where there is no such accelerator type

    @property
    def slice(self) -> Slice:
        return parse_slice(self.accelerator_type, "accelerator_type")

    @property
    def num_workers(self) -> int:
        """Return the number of machines of the slice: each runs the startup script."""
        chips = self.slice.num_chips
        alone = self.slice.generation.chips_alone
        return 1 if chips <= alone else chips // _CHIPS_PER_HOST

    @property
    def image(self) -> str:
        return self.runtime_version or self.slice.generation.image

    @property
    def price(self) -> float:
        """Return US dollars an hour."""
        return self.dollars_per_hour or self.slice.num_chips * self._listed.dollars_per_chip_hour

    @property
    def price_source(self) -> str:
        """Return where the price comes from, in words."""
        if self.dollars_per_hour:
            return "dollars_per_hour"
        kind = "spot" if self._listed.capacity == "spot" else "list price"
        return f"{kind} in {self._listed.region.rstrip('-')}, {self._listed.date}"

    @property
    def price_is_known(self) -> bool:
        """Return whether it is that of this zone and capacity, not the nearest to it."""
        wanted = "spot" if self.capacity == "spot" else "on-demand"
        listed = self._listed
        return bool(self.dollars_per_hour) or (listed.capacity == wanted and self.zone.startswith(listed.region))

    @property
    def _listed(self) -> Price:
        return self.slice.price(self.zone, self.capacity)

    @property
    def run_url(self) -> str:
        """Return the folder of all that the run is: code/, status/, logs/, workdir/, models/."""
        return f"gs://{self.bucket}/runs/{self.name}"
