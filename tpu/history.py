"""The machines that a run has had, kept in the bucket: what they cost, how often they were made, what they achieved."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field

from tpu import commands
from tpu.gcloud import Gcloud
from tpu.settings import Settings


@dataclass
class Machine:
    """One creation."""

    name: str
    """Tells it from the others; status files carry it."""
    asked: float
    """Seconds since 1970."""
    first_step: int
    """The run's step when it was asked for."""
    price: float
    """US dollars an hour."""
    there: float | None = None
    """When it was first seen, which is when it begins to cost."""
    gone: float | None = None
    last_step: int = 0


@dataclass
class History:
    """Of one run, newest machine last."""

    machines: list[Machine] = field(default_factory=list)
    babysitter: str = ""
    """Who watches: the last one that began to."""

    @property
    def current(self) -> Machine | None:
        """The machine that is, or was last asked for and not seen to be gone."""
        return self.machines[-1] if self.machines and self.machines[-1].gone is None else None

    @property
    def step(self) -> int:
        return max((machine.last_step for machine in self.machines), default=0)

    @property
    def idle_machines(self) -> int:
        """The last ones in a row that were there and gained no step."""
        count = 0
        for machine in reversed([machine for machine in self.machines if machine.there and machine.gone]):
            if machine.last_step > machine.first_step:
                break
            count += 1
        return count

    def creations(self, now: float) -> int:
        """Within the hour before `now`."""
        return sum(now - machine.asked < 3600 for machine in self.machines)

    def spent(self, now: float) -> float:
        """US dollars, from when each machine was first seen until it was gone: what Google bills is less."""
        return sum(
            machine.price * ((machine.gone or now) - machine.there) / 3600 for machine in self.machines if machine.there
        )

    def begin(self, now: float, price: float, name: str = "") -> str:
        """A new machine, named by the time unless `name` is given; its name."""
        name = name or time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        self.machines.append(Machine(name, now, self.step, price))
        return name


def load(settings: Settings, gcloud: Gcloud) -> History:
    """Raises GcloudError where the bucket cannot be asked."""
    found = gcloud.describe(commands.read(_url(settings)))
    if found is None:
        return History()
    return History([Machine(**machine) for machine in found["machines"]], found["babysitter"])


def save(settings: Settings, gcloud: Gcloud, history: History) -> None:
    """Raises GcloudError."""
    gcloud.ask(commands.write(_url(settings)), json.dumps(dataclasses.asdict(history), indent=1) + "\n")


def _url(settings: Settings) -> str:
    return f"{settings.run_url}/machines.json"
