"""The lines of metrics.jsonl and events.jsonl."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

METRICS = "metrics.jsonl"
_Step = Annotated[int, Field(ge=0, le=1 << 40)]
_Time = Annotated[float, Field(ge=0, lt=253_402_300_800)]  # until the year 9999


class Record(BaseModel):
    """A line of metrics.jsonl; its other fields are the metrics."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float] = Field(init=False)

    step: _Step
    split: Literal["train", "validation"]
    time: _Time


class Event(BaseModel):
    """A line of events.jsonl; its other fields are details."""

    model_config = ConfigDict(extra="allow")

    event: str
    step: _Step
    time: _Time
