"""What a run tells the program that began it."""

from __future__ import annotations


class Callbacks:
    """Hears of a run while it goes on: override what you want to know. Process 0 alone calls, between two steps.

    What one of them raises ends the run, with its last save complete; the same call continues from there. After steps
    that are not finite a run goes back, and steps come again.
    """

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Take the averages of the steps since the last record, as metrics.jsonl has them."""

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Take what was measured on held-out examples."""

    def on_save(self, step: int) -> None:
        """Know that a checkpoint of this step is being written: complete when the next one begins, or at the end."""
