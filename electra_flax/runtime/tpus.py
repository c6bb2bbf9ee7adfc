"""What TPUs are: names, shapes, speeds, memory and prices, as data. Imports nothing.

Sources: cloud.google.com's TPU pages for peak rates, memory, links and list prices; limits of memory and operations
per cycle as the compiler itself states them (v4: twice a core's). A device is what JAX calls one: a core on v2 and v3,
a chip on later generations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from electra_flax.errors import UserError

_GIB = 2**30


@dataclass(frozen=True)
class Generation:
    """One generation of TPU; rates are per device."""

    prefix: str
    """As in an accelerator type: v3 in v3-8."""
    compiler_name: str
    """As the compiler's topologies spell it."""
    device_kind: str
    """As JAX calls a device of it."""
    dimensions: int
    """Of the torus that connects the chips."""
    devices_per_chip: int
    counts_cores: bool
    """The number in an accelerator type counts cores, two a chip; otherwise chips."""
    flops_per_second: float
    """Peak, bfloat16."""
    flops_per_cycle: int
    memory_bytes: int
    """What programs may use of a device's memory."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """One link, one direction."""
    image: str
    """The runtime image of Google's page "Cloud TPU software versions"."""
    chips_alone: int = 4
    """That one machine can have; a machine of a pod has 4, of every generation."""

    @property
    def clock_hz(self) -> float:
        return self.flops_per_second / self.flops_per_cycle


def _gib(size: float) -> int:
    return int(size * _GIB)


# fmt: off
GENERATIONS = (
    Generation("v2", "v2", "TPU v2", 2, 2, True, 46e12 / 2, 32768, _gib(7.48), 700e9 / 2, 62e9,
               "tpu-ubuntu2204-base"),
    Generation("v3", "v3", "TPU v3", 2, 2, True, 123e12 / 2, 65536, _gib(15.48), 900e9 / 2, 82e9,
               "tpu-ubuntu2204-base"),
    Generation("v4", "v4", "TPU v4", 3, 1, True, 275e12, 262144, _gib(30.5), 1228e9, 45e9,
               "tpu-ubuntu2204-base"),
    Generation("v5litepod", "v5e", "TPU v5 lite", 2, 1, False, 197e12, 131072, _gib(15.75), 819e9, 45e9,
               "v2-alpha-tpuv5-lite", chips_alone=8),
    Generation("v5p", "v5p", "TPU v5", 3, 1, True, 459e12, 262144, _gib(95.74), 2765e9, 90e9,
               "v2-alpha-tpuv5"),
    Generation("v6e", "v6e", "TPU v6 lite", 2, 1, False, 918e12, 524288, _gib(31.25), 1640e9, 90e9,
               "v2-alpha-tpuv6e", chips_alone=8),
)
# fmt: on


@dataclass(frozen=True)
class Price:
    """What Google asked for a chip and hour, in US dollars. Spot prices change about monthly."""

    prefix: str
    """Of the generation."""
    region: str
    """What its zones begin with."""
    capacity: str
    """"on-demand" (the list price) or "spot"."""
    dollars_per_chip_hour: float
    date: str
    """When it was looked up."""
    is_pod: bool | None = None
    """Of slices of several machines alone, or of one alone; None: of both."""


# The first of a generation is what a price without a zone means.
PRICES = (
    Price("v2", "us-", "on-demand", 1.125, "2025-11", is_pod=False),
    Price("v2", "us-", "on-demand", 1.5, "2026-11", is_pod=True),
    Price("v3", "us-", "on-demand", 2.0, "2025-11"),
    Price("v3", "europe-", "on-demand", 2.2, "2026-11"),
    Price("v3", "us-", "spot", 0.51, "2026-11"),
    Price("v3", "europe-", "spot", 0.56, "2026-11"),
    Price("v4", "us-", "on-demand", 3.22, "2025-11"),
    Price("v4", "us-", "spot", 0.9225, "2026-11"),
    Price("v5litepod", "us-central1", "on-demand", 1.2, "2025-11"),
    Price("v5litepod", "us-central1", "spot", 0.245, "2026-11"),
    Price("v5p", "us-", "on-demand", 4.2, "2025-11"),
    Price("v6e", "us-central1", "on-demand", 2.7, "2025-11"),
    Price("v6e", "us-central1", "spot", 0.5725, "2026-11"),
)


@dataclass(frozen=True)
class Slice:
    """Some number of connected chips, as one rents them."""

    accelerator_type: str
    generation: Generation
    num_chips: int

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.generation.devices_per_chip

    @property
    def shape(self) -> tuple[int, ...]:
        """Return chips along each dimension, as equal as powers of two allow, smaller ones first.

        4 chips are 2x2 or 2x2x1.
        """
        dimensions = self.generation.dimensions
        each, extra = divmod(self.num_chips.bit_length() - 1, dimensions)
        sizes = (2 ** (each + (dimension < extra)) for dimension in range(dimensions))
        return tuple(sorted(sizes, key=lambda size: (size == 1, size)))

    @property
    def topology_name(self) -> str:
        return f"{self.generation.compiler_name}:{'x'.join(map(str, self.shape))}"

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Return what the compiler must be told beside the topology.

        Both cores of a v4 chip are one device, as on a VM; one chip is a host by itself.
        """
        options: dict[str, Any] = {"chip_config_name": "megacore"} if self.generation.prefix == "v4" else {}
        return options | ({"chips_per_host_bounds": (1, 1, 1)} if self.num_chips == 1 else {})

    @property
    def dollars_per_hour(self) -> float:
        """Return the list price."""
        return self.num_chips * self.price().dollars_per_chip_hour

    def price(self, zone: str = "", capacity: str = "on-demand") -> Price:
        """Return the nearest price that is known.

        Of a spot price that is not, the list price, which it stays below; reserved capacity is counted at it too.
        """
        known = [
            price
            for price in PRICES
            if price.prefix == self.generation.prefix and price.is_pod in (None, self.num_chips > 4)
        ]
        wanted = "spot" if capacity == "spot" else "on-demand"
        return max(known, key=lambda price: (price.capacity == wanted, zone.startswith(price.region)))


def peak_flops(device_kind: str) -> float | None:
    """Return peak bfloat16 operations per second of one of JAX's devices, or None where it is no TPU of this list."""
    return next((found.flops_per_second for found in GENERATIONS if found.device_kind == device_kind), None)


def parse_slice(accelerator_type: str, flag: str = "--topology") -> Slice:
    """Return the slice of a name such as "v3-8". Raises UserError for a name that is none, as a value of `flag`."""
    names = "|".join(generation.prefix for generation in GENERATIONS)
    match = re.fullmatch(rf"({names})-([0-9]{{1,9}})", accelerator_type)
    expected = f"an accelerator type such as v3-32, {', '.join(f'{each.prefix}-8' for each in GENERATIONS)}"
    if not match:
        raise UserError(f"{flag} {accelerator_type[:60]}: expected {expected}")
    generation = next(generation for generation in GENERATIONS if generation.prefix == match[1])
    number = int(match[2])
    num_chips, rest = divmod(number, 2) if generation.counts_cores else (number, 0)
    is_one_chip = num_chips == 1 and not generation.counts_cores
    if rest or (num_chips < 4 and not is_one_chip) or num_chips & (num_chips - 1):
        unit = "cores: 8, 16, 32, 64 ..." if generation.counts_cores else "chips: 1, 4, 8, 16, 32 ..."
        raise UserError(f"{flag} {accelerator_type}: {match[1]} slices have a power of two of {unit}")
    return Slice(accelerator_type, generation, num_chips)
