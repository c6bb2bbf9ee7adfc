"""electra-flax configs: the presets, by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from electra_flax import shipped
from electra_flax.runtime.console import print_json, print_line, print_text
from electra_flax.runtime.flags import Command

if TYPE_CHECKING:
    from electra_flax.config.architecture import Architecture


class Preset(NamedTuple):
    """What the list says of one; the parameters are those of the models as they are exported."""

    name: str
    title: str
    file: str
    discriminator_parameters: int
    generator_parameters: int
    batch_size: int
    num_steps: int
    max_seq_length: int

    @classmethod
    def read(cls, name: str, path: Path) -> Preset:
        """Return that of a file, whose first line is a comment, its title."""
        from electra_flax.config.loading import load_config

        config = load_config(path)
        with path.open(encoding="utf-8") as file:
            title = next(file).lstrip("# ").rstrip()
        sizes = num_parameters(config.architecture)
        return cls(
            name, title, str(path), sizes["discriminator"], sizes["generator"], config.training.batch_size,
            config.training.num_steps, config.data.max_seq_length,
        )  # fmt: skip


class Configs(Command):
    """List the presets that --config takes by name.

    For each preset: parameters of both models as exported (each with its embeddings), batch size, steps and sequence
    length; at the end, the folder of the files.
    """

    json: bool = False
    """print JSON"""

    def run(self) -> None:
        found = [Preset.read(name, path) for name, path in shipped.presets().items()]
        if self.json:
            print_json([preset._asdict() for preset in found])
            return
        print(_row("preset", ("discriminator", "generator", "batch size", "steps", "tokens")))
        for preset in found:
            print(_row(preset.name, (f"{number:,}" for number in preset[3:])))
            print_text(f"  {preset.title}", indent=0)
        print_line(f"files (copy one to write your own): {shipped.CONFIGS}")


def num_parameters(architecture: Architecture) -> dict[str, int]:
    """Return how many parameters each of the models has that there are to publish."""
    from electra_flax.model.electra import expected_shapes
    from electra_flax.weights import names

    # One layer is as large as the next, and shapes of 24 take a second.
    of_one = dataclasses.replace(
        architecture,
        model=dataclasses.replace(architecture.model, num_hidden_layers=1),
        generator=architecture.generator and dataclasses.replace(architecture.generator, num_hidden_layers=1),
    )
    shapes = expected_shapes(of_one)
    named = {"discriminator": names.discriminator_names(shapes), "generator": names.generator_names(shapes)}

    def number(part: str, name: str) -> int:
        layers = architecture.sizes_of(part).num_hidden_layers if "/encoder/layer/" in name else 1
        return layers * math.prod(shapes[name])

    return {part: sum(number(part, name) for name in named[part].values()) for part in architecture.parts}


def _row(name: str, cells: Iterable[str]) -> str:
    first, *rest = cells
    return f"{name:20s}{first:>13s}{''.join(f'{cell:>12s}' for cell in rest)}"
