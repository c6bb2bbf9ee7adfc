"""What workers last said, in the bucket, and how long ago: by the bucket's clock, whatever this computer's says."""

from datetime import UTC, datetime
from typing import NamedTuple

from electra_flax.errors import escaped
from electra_flax.files import parse_lines
from tpu import commands
from tpu.answers import Status, StoredObject
from tpu.decisions import Worker
from tpu.gcloud import Gcloud, GcloudError
from tpu.settings import Settings


class Board(NamedTuple):
    now: float
    """Seconds since 1970."""
    workers: dict[int, Worker]
    """Those of the machine that was asked for."""
    unreadable_seconds: float | None
    """Since any worker wrote, where a line is no status (cut off, while one is being written); else None."""


def clock(settings: Settings, gcloud: Gcloud) -> float:
    """Return the bucket's time. Raises GcloudError."""
    return _times(settings, gcloud, [])[_clock(settings)]


def read_board(settings: Settings, gcloud: Gcloud, machine: str | None) -> Board:
    """Read what the bucket tells. Raises GcloudError."""
    pattern = f"{settings.run_url}/status/*"
    times = _times(settings, gcloud, [pattern])
    now = times[_clock(settings)]
    found, unreadable = parse_lines(gcloud.find(commands.read(pattern)).encode(), Status)
    workers = {}
    for status in found:
        if status.machine == machine:
            written = times.get(f"{settings.run_url}/status/worker-{status.worker}.json", now)
            workers[status.worker] = Worker(
                status.phase, max(0.0, now - written), status.step, status.exit_code, escaped(status.message)
            )
    since = now - max((time for url, time in times.items() if url != _clock(settings)), default=now)
    return Board(now, workers, max(0.0, since) if unreadable else None)


def _times(settings: Settings, gcloud: Gcloud, urls: list[str]) -> dict[str, float]:
    """Return {url: when it was last written}, of an object that is written just now too."""
    gcloud.ask(commands.write(_clock(settings)), "written to see the bucket's time\n")
    command = commands.times([_clock(settings), *urls])
    found = gcloud.answer(command, list[StoredObject])
    try:
        times = {f"gs://{settings.bucket}/{each.name}": _seconds(each.update_time) for each in found}
    except ValueError as error:
        raise GcloudError(command, f"ERROR: its answer: {error}") from None
    if _clock(settings) not in times:
        raise GcloudError(command, f"ERROR: {_clock(settings)} was written, but is not there")
    return times


def _seconds(time: str) -> float:
    found = datetime.fromisoformat(time)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _clock(settings: Settings) -> str:
    return f"{settings.run_url}/clock"
