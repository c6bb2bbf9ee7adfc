"""What gcloud and the bucket answer, as far as it is read here; names are Google's. Other fields are passed over."""

from dataclasses import dataclass, field


@dataclass
class Reason:
    """google.rpc.Status."""

    code: int = 0
    message: str = ""


@dataclass
class Failure:
    error: Reason = field(default_factory=Reason)


@dataclass
class RequestState:
    state: str = "STATE_UNSPECIFIED"
    failedData: Failure = field(default_factory=Failure)


@dataclass
class Request:
    """A queued resource."""

    state: RequestState = field(default_factory=RequestState)

    @property
    def refusal(self) -> str:
        """Return why Google refuses it, or ""."""
        reason = self.state.failedData.error
        return f"{' '.join(reason.message.split())} (code {reason.code})" if reason.message else ""


@dataclass
class Node:
    """A machine, or a pod of them."""

    state: str = "STATE_UNSPECIFIED"
    health: str = ""
    healthDescription: str = ""


@dataclass
class StoredObject:
    name: str
    update_time: str


@dataclass
class Named:
    """An accelerator type or a runtime version."""

    name: str


@dataclass
class Project:
    projectNumber: str = ""


@dataclass
class SoftDelete:
    retentionDurationSeconds: str = "0"


@dataclass
class Bucket:
    location: str = ""
    soft_delete_policy: SoftDelete = field(default_factory=SoftDelete)


@dataclass
class Binding:
    role: str
    members: list[str] = field(default_factory=list)


@dataclass
class Policy:
    """Who may do what."""

    bindings: list[Binding] = field(default_factory=list)


@dataclass
class Manifest:
    """Of shards."""

    max_seq_length: int


@dataclass
class PhasePlan:
    """What `electra-flax plan --json` says of a phase."""

    fits: bool
    predicted_days: float | None
    predicted_dollars: float | None
    ways_out: list[dict[str, object]]


@dataclass
class Status:
    """status/worker-N.json, as worker.py and startup.sh write it."""

    machine: str
    worker: int
    phase: str
    step: int = 0
    exit_code: int | None = None
    message: str = ""
