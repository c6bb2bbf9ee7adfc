"""Whose devices hold which rows of a global batch, on the slices that the TPU compiler knows."""

import importlib.util
import os
from collections import Counter

import jax
import numpy as np
import pytest

from electra_flax.config.schema import MeshConfig
from electra_flax.model.sharding import batch_sharding, global_batch, make_mesh, rows_of_process
from electra_flax.planning import kernel_schedule
from electra_flax.runtime.tpus import parse_slice

# The process of each device, in the mesh's order: one block each on v2 and v3 alone. Which it is the release of JAX and
# the compiler says: of v5p-16 jax 0.10 makes the first order, jax 0.12 the second.
PROCESSES = {
    "v2-32": "0" * 8 + "1" * 8 + "2" * 8 + "3" * 8,
    "v3-8": "0" * 8,
    "v3-32": "0" * 8 + "1" * 8 + "2" * 8 + "3" * 8,
    "v4-16": "01010101",
    "v4-32": "0123012301230123",
    "v5p-16": ("01010101", "00001111"),
    "v5litepod-16": "0011110233332220",
    "v6e-16": "0011110233332220",
}


@pytest.fixture(scope="module")
def devices():
    """(accelerator type) -> its devices, of which there are none here."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("NOT CHECKED: the TPU compiler (extra tpu) is not installed: make tpu-compiler")
    os.environ.update(
        {name: os.environ.get(name, value) for name, value in kernel_schedule.COMPILER_ENVIRONMENT.items()}
    )
    from jax.experimental import topologies

    def of(accelerator_type):
        where = parse_slice(accelerator_type)
        options = {"platform": "tpu", "topology_name": where.topology_name, **where.compiler_options}
        return list(topologies.get_topology_desc(**options).devices)

    return of


@pytest.mark.parametrize(("accelerator_type", "processes"), PROCESSES.items())
def test_each_process_reads_the_rows_of_its_devices(accelerator_type, processes, devices):
    mesh = make_mesh(MeshConfig(), devices(accelerator_type))
    known = (processes,) if isinstance(processes, str) else processes
    processes = "".join(str(device.process_index) for device in mesh.devices.flat)
    assert processes in known
    batch_size = 2 * len(processes)
    for process in map(str, range(1 + int(max(processes)))):
        expected = [2 * place + row for place, its in enumerate(processes) if its == process for row in (0, 1)]
        assert rows_of_process(mesh, batch_size, int(process)).tolist() == expected


@pytest.mark.parametrize(
    ("accelerator_type", "axes", "holders"),
    [
        ("v4-16", {"tensor": 2}, 1),
        ("v4-16", {"data": 1, "tensor": 8}, 2),  # both processes need every row
        ("v6e-16", {"tensor": 2}, 1),  # no axis of the torus has two chips
        ("v4-128", {"tensor": 2}, 1),
        ("v5litepod-16", {"data": 2, "fsdp": -1, "tensor": 4}, 2),
    ],
)
def test_every_row_is_read_where_it_is_needed(accelerator_type, axes, holders, devices):
    mesh = make_mesh(MeshConfig(**{"data": -1, **axes}), devices(accelerator_type))
    last = max(device.process_index for device in mesh.devices.flat)
    rows = [rows_of_process(mesh, 64, process) for process in range(last + 1)]
    assert Counter(np.concatenate(rows).tolist()) == dict.fromkeys(range(64), holders)
    for device, (held,) in batch_sharding(mesh).devices_indices_map((64,)).items():
        assert set(range(*held.indices(64))) <= set(rows[device.process_index].tolist())


def test_a_batch_lies_in_its_order_on_any_order_of_devices():
    batch = {"ids": np.arange(48, dtype=np.int32).reshape(16, 3), "weight": np.arange(16, dtype=np.float32)}
    for axes in ({}, {"tensor": 2}, {"data": 1, "tensor": 8}):
        mesh = make_mesh(
            MeshConfig(**{"data": -1, **axes}), [jax.devices()[place] for place in (3, 0, 7, 1, 6, 4, 5, 2)]
        )
        found = global_batch(mesh, 16, rows_of_process(mesh, 16), batch)
        for name, values in batch.items():
            assert found[name].sharding == batch_sharding(mesh)
            np.testing.assert_array_equal(found[name], values)
