"""The machines that a run has had, kept in the bucket: what they cost, how often they were made, what they achieved."""

import dataclasses
import json
import time
from dataclasses import dataclass, field

from pydantic import FiniteFloat

from tpu import commands
from tpu.gcloud import Gcloud
from tpu.settings import Settings


@dataclass
class Machine:
    """One creation."""

    name: str
    """Tells it from the others; status files carry it."""
    asked: FiniteFloat
    """Seconds since 1970, by the bucket's clock, as all times here: launchers' clocks differ."""
    first_step: int
    """The run's step when it was asked for."""
    price: FiniteFloat
    """US dollars an hour."""
    there: FiniteFloat | None = None
    """When it was first seen, which is when it begins to cost."""
    gone: FiniteFloat | None = None
    last_step: int = 0
    refused: str = ""
    """Why Google refused it."""
    gave_up: int | None = None
    """The step that it had reached when the trainer failed there again and again."""


@dataclass
class History:
    """Of one run, newest machine last."""

    machines: list[Machine] = field(default_factory=list)
    babysitter: str = ""
    """Who watches: the last one that began to."""
    judged_from: int = 0
    """The first machine that counts where several in a row end a run: whoever starts it again has mended something."""

    @property
    def current(self) -> Machine | None:
        """Return the machine that is, or was last asked for and not seen to be gone."""
        return self.machines[-1] if self.machines and self.machines[-1].gone is None else None

    @property
    def step(self) -> int:
        return max((machine.last_step for machine in self.machines), default=0)

    @property
    def idle_machines(self) -> int:
        """Return how many of the last machines in a row were there and gained no step."""
        count = 0
        for machine in reversed([machine for machine in self._judged if machine.there and machine.gone]):
            if machine.last_step > machine.first_step:
                break
            count += 1
        return count

    @property
    def refusals(self) -> list[str]:
        """Return why Google refused the last machines in a row."""
        reasons = [machine.refused for machine in self._judged]
        accepted = max((number for number, reason in enumerate(reasons, start=1) if not reason), default=0)
        return reasons[accepted:]

    @property
    def gave_up_before(self) -> int | None:
        """Return the step at which the trainer gave up on the last machine before this one where it did."""
        before = self._judged[:-1] if self.current else self._judged
        return next((machine.gave_up for machine in reversed(before) if machine.gave_up is not None), None)

    @property
    def _judged(self) -> list[Machine]:
        return self.machines[self.judged_from :]

    def judge_anew(self) -> None:
        """Judge from the machine at hand on."""
        self.judged_from = len(self.machines) - (1 if self.current else 0)

    def creations(self, now: float) -> int:
        """Return how many machines were asked for within the hour before `now`."""
        return sum(now - machine.asked < 3600 for machine in self.machines)

    def spent(self, now: float) -> float:
        """Return US dollars, from when each machine was first seen until it was gone: what Google bills is less."""
        return sum(
            machine.price * ((machine.gone or now) - machine.there) / 3600 for machine in self.machines if machine.there
        )

    def begin(self, now: float, price: float, name: str = "") -> str:
        """Begin a new machine, named by the time unless `name` is given; return its name."""
        name = name or time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        self.machines.append(Machine(name, now, self.step, price))
        return name

    def end(self, now: float) -> None:
        """Note that the machine at hand is gone, if there is one."""
        if self.current:
            self.current.gone = now


def load(settings: Settings, gcloud: Gcloud) -> History:
    """Read the history. Raises GcloudError where the bucket cannot be asked, or holds something else."""
    return gcloud.describe(commands.read(_url(settings)), History, is_ours=True) or History()


def save(settings: Settings, gcloud: Gcloud, history: History) -> None:
    """Write the history. Raises GcloudError."""
    gcloud.ask(commands.write(_url(settings)), json.dumps(dataclasses.asdict(history), indent=1) + "\n")


def _url(settings: Settings) -> str:
    return f"{settings.run_url}/machines.json"
