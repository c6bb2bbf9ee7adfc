"""TensorBoard's events, as bytes for its files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from electra_flax.data.tfrecord import frame

# tensorboardX imports torch where it is installed, three seconds and 300 MB for a type's name, and does without it
# where it is not.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    if _hides_torch:
        del sys.modules["torch"]


def version_event() -> bytes:
    """Return what a file of events begins with."""
    return _framed(Event(file_version="brain.Event:2"))


def scalars_event(step: int, scalars: Mapping[str, float]) -> bytes:
    """Return {name: value} of a step, as an event."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return _framed(Event(step=step, summary=Summary(value=values)))


def restart_event(step: int) -> bytes:
    """Return an event that has TensorBoard drop what it had read of steps after `step`."""
    return _framed(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))


def _framed(event: Event) -> bytes:
    event.wall_time = time.time()
    return frame(event.SerializeToString())
