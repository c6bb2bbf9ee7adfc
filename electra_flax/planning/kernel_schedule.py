"""How many cycles the compiler's own schedule gives the attention kernel: a program of its own, run by plan.

A custom kernel carries no estimate in the text of a compiled program, but the compiler can write down the
instruction bundles that it scheduled. That must be asked for before the compiler is loaded, hence a process apart.
One bundle takes a cycle, and a `vdelay N` in it N more; on matrix products that fill the matrix unit the sum is within
4% of arithmetic (docs/plan.md).

    python -m electra_flax.planning.kernel_schedule TOPOLOGY < kernels.json > cycles.json
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from electra_flax.errors import RunError
from electra_flax.files import parse_json

_BUNDLE = re.compile(r"^ *\w+ +(?:\w\w)? *:", re.MULTILINE)
_DELAY = re.compile(r"\bvdelay (\d+)")

LIBRARY_ENVIRONMENT: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",  # of a metadata server that is not there
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file lets one process load it: this one is started beside another
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_MIN_LOG_LEVEL": "4",
}
"""What the TPU compiler needs on a machine without TPUs."""
COMPILER_ENVIRONMENT: Mapping[str, str] = {"JAX_PLATFORMS": "cpu", **LIBRARY_ENVIRONMENT}
"""The same for a process that does nothing else, set before JAX is imported."""


def schedule_cycles(topology_name: str, kernels: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return {instruction name and result type: cycles of its whole grid} of each kernel, both directions.

    A kernel is {"rows": B, "spec": fields of attention_kernel.Spec}. Raises RunError where the compiler fails.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **COMPILER_ENVIRONMENT,
            "LIBTPU_INIT_ARGS": f"{given} --xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true".lstrip(),
        }
        command = [sys.executable, "-m", "electra_flax.planning.kernel_schedule", topology_name, folder]
        done = subprocess.run(
            command, input=json.dumps(list(kernels)), env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the attention kernel does not compile for {topology_name}: {reason}")
    last = done.stdout.rstrip().rpartition("\n")[2]
    return parse_json(last, dict[str, int], "what the compiler of kernels wrote", "report it")


def bundle_cycles(text: str) -> int:
    """Return cycles of one pass through a kernel's final bundles."""
    return len(_BUNDLE.findall(text)) + sum(int(cycles) for cycles in _DELAY.findall(text))


def _main(topology_name: str, folder: Path) -> None:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from electra_flax.model import attention_kernel
    from electra_flax.model.attention_kernel import Spec

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology_name).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def argument(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    cycles: dict[str, int] = {}
    for kernel in json.load(sys.stdin):
        rows, dtype = kernel["rows"], jnp.dtype(kernel["dtype"])
        spec = Spec(**{**kernel["spec"], "matmul_dtype": jnp.dtype(kernel["spec"]["matmul_dtype"])})
        wide = argument((rows, spec.num_heads * spec.head_size, spec.tokens), dtype)
        mask, seeds = argument((rows, spec.tokens), jnp.int32), argument((rows,), jnp.int32)

        def both(grad: Any, *inputs: Any, spec: Spec = spec) -> Any:
            return jax.vjp(lambda *inputs: attention_kernel.attend_local(spec, *inputs), *inputs)[1](grad)

        arguments = (wide, wide, wide, wide, mask, seeds, argument((1,), jnp.int32))
        jax.jit(both).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
        shape = f"[{','.join(map(str, wide.shape))}]"
        for name in spec.names:
            # Exactly one: another compiler may name its dumps otherwise, which must not pass for a kernel that is free.
            (path,) = (
                path for path in folder.glob(f"*{name}*final_bundles.txt") if "schedule-analysis" not in path.name
            )
            steps = rows * spec.num_heads // spec.heads_per_step
            cycles[f"{name} {shape}"] = bundle_cycles(path.read_text()) * steps
        for path in folder.iterdir():  # the next kernel's have the same names
            path.unlink()
    print(json.dumps(cycles))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
