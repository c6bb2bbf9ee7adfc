"""electra-flax verify: a published model in every hand that can hold it, layer by layer."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from rich.table import Table
from rich.text import Text

from electra_flax.errors import UserError
from electra_flax.weights import parity
from electra_flax.weights.sources import SOURCES, find_weights, is_source
from electra_flax.weights.weights import Weights

Found = dict[str, dict[str, parity.Differences | None]]
"""{"discriminator": {"flax": ..., "torch": ..., "tensorflow": ..., "--against": ...}, "generator": ...}"""


def verify(model: str, against: str | None) -> Found:
    """Compare our forward pass of a model, or of an export of both, with that of each framework that is installed.

    Those of the weights `against` are compared too. None where a framework is not installed.

    Raises UserError where something is missing, cannot be loaded, or is another architecture.
    """
    weights = find_weights(f"hf:{model}")
    parts = weights.architecture.parts
    folders = dict(zip(parts, cycle(weights.folders), strict=False))  # both heads may lie in one folder
    found = parity.compare(weights, folders)
    if against:
        other = find_weights(_source(against))
        for part, differences in _compare_weights(weights, other, folders).items():
            found[part]["--against"] = differences
    return found


def table(part: str, found: dict[str, parity.Differences | None], tolerance: float) -> Table:
    """Return differences as a table: layers down, hands across; what is beyond the tolerance in red."""
    shown = Table(title=f"{part}: largest difference from our outputs")
    there = {name: differences for name, differences in found.items() if differences}
    shown.add_column("")
    for name in found:
        shown.add_column(name, justify="right")
    depth = max((len(differences.hidden) for differences in there.values()), default=0)

    def cells(values: dict[str, float]) -> list[Text]:
        return [
            Text(f"{values[name]:.1e}", style="" if values[name] <= tolerance else "bold red")  # NaN too
            if name in values
            else Text("not installed")
            for name in found
        ]

    for i in range(depth):
        label = "embeddings" if i == 0 else f"layer {i}"
        shown.add_row(label, *cells({name: differences.hidden[i] for name, differences in there.items()}))
    shown.add_row("logits", *cells({name: differences.logits for name, differences in there.items()}))
    return shown


def _source(against: str) -> str:
    return against if is_source(against) else f"hf:{against}"


def _compare_weights(ours: Weights, other: Weights, folders: dict[str, Path]) -> dict[str, parity.Differences]:
    """Compare both on the same texts, in the pieces of our tokenizer."""
    common = [part for part in folders if part in other.architecture.parts]
    if not common:
        raise UserError(f"--against {other.source}: has no {' or '.join(folders)} to compare with; expected {SOURCES}")
    longest = min(ours.architecture.model.max_position_embeddings, other.architecture.model.max_position_embeddings)
    inputs = {part: parity.make_inputs(folders[part], longest) for part in common}
    a, b = parity.our_outputs(ours, inputs), parity.our_outputs(other, inputs)
    for part in common:
        shapes = [[array.shape for array in (*outputs.hidden, outputs.logits)] for outputs in (a[part], b[part])]
        if shapes[0] != shapes[1]:
            raise UserError(f"--against {other.source}: its {part} has other sizes: give two forms of the same model")
    return {part: parity.difference(a[part], b[part]) for part in common}
