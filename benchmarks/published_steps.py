"""Train steps whose time on a TPU was published, predicted as `electra-flax plan` predicts ours.

No step of electra-flax was timed on a TPU yet, so this is how far its predictions can be trusted: models of others,
written down from their papers' sizes, compiled for the slice that they ran on, and costed by the same rules. Prints a
table for docs/plan.md.

    make tpu-compiler
    python benchmarks/published_steps.py --out runs/bench
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.planning.kernel_schedule import COMPILER_ENVIRONMENT

os.environ.update(COMPILER_ENVIRONMENT)  # JAX reads it when it is imported

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from electra_flax.planning import compilation, plan, program_cost
from electra_flax.runtime.tpus import parse_slice

_IMAGE, _PATCH, _CLASSES = 224, 16, 1000
_IMAGES = 1_268_355  # 99% of ImageNet's training images, on which both learned


class Published(NamedTuple):
    """A run of others."""

    name: str
    model: nn.Module
    accelerator_type: str
    batch: int
    epochs: int
    hours: tuple[float, float]
    """Of all epochs, least and most that is said; evaluations and compiling included."""
    source: str

    @property
    def seconds(self) -> tuple[float, float]:
        """Return those of a step, least and most."""
        steps = self.epochs * _IMAGES / self.batch
        return self.hours[0] * 3600 / steps, self.hours[1] * 3600 / steps


class VisionTransformer(nn.Module):
    """ViT as in "Better plain ViT baselines for ImageNet-1k" (2205.01580), its head over the mean of the patches."""

    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _patches(images, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(self.depth):
            x += nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            x += _mlp(nn.LayerNorm()(x), 4 * self.width)
        return nn.Dense(_CLASSES)(nn.tanh(nn.Dense(self.width)(nn.LayerNorm()(x).mean(axis=1))))


class Mixer(nn.Module):
    """MLP-Mixer (2105.01601)."""

    width: int
    depth: int
    between_patches: int
    within_patch: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _patches(images, self.width)
        for _ in range(self.depth):
            x += _mlp(nn.LayerNorm()(x).swapaxes(1, 2), self.between_patches).swapaxes(1, 2)
            x += _mlp(nn.LayerNorm()(x), self.within_patch)
        return nn.Dense(_CLASSES)(nn.LayerNorm()(x).mean(axis=1))


def _patches(images: jax.Array, width: int) -> jax.Array:
    x = nn.Conv(width, (_PATCH, _PATCH), strides=_PATCH, padding="VALID")(images)
    return x.reshape(len(x), -1, width)


def _mlp(x: jax.Array, inner: int) -> jax.Array:
    return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(inner)(x)))


RUNS = (
    Published(
        "ViT-S/16", VisionTransformer(width=384, depth=12, heads=6), "v3-8", 1024, 90, (6, 7),
        "big_vision, vit_s16_i1k.py",
    ),
    Published(
        "MLP-Mixer-B/16", Mixer(width=768, depth=12, between_patches=384, within_patch=3072), "v3-128", 4096, 300,
        (2 + 11 / 60, 2 + 11 / 60), "big_vision, mlp_mixer_i1k.py",
    ),
)  # fmt: skip


def predict(run: Published) -> dict[str, float]:
    """Return the predicted seconds of a step, and of what they are made; float32, products by the TPU's default."""
    where = parse_slice(run.accelerator_type)
    devices = topologies.get_topology_desc(where.topology_name, platform="tpu", **where.compiler_options).devices
    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-4))

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(run.model.apply(params, images), labels).mean()

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    def begin(images: jax.Array) -> Any:
        params = run.model.init(jax.random.key(0), images)
        return params, optimizer.init(params)

    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((run.batch, _IMAGE, _IMAGE, 3), jnp.float32, sharding=split)
    labels = jax.ShapeDtypeStruct((run.batch, _CLASSES), jnp.float32, sharding=split)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), jax.eval_shape(begin, images)
    )
    jitted: Any = jax.jit(step, donate_argnums=0, out_shardings=whole)
    compiled = compilation.compile_for(jitted.trace(state, images, labels).lower(lowering_platforms=("tpu",)), where)
    if compiled.memory is None:
        raise SystemExit(f"{run.name}: does not fit {run.accelerator_type} ({compiled.needed_bytes:,} bytes)")
    program = program_cost.parse(compiled.text)
    costs = program_cost.operation_costs(program, plan.hardware(where.generation, {}))
    bases = {cost.basis for cost in costs}
    return {"seconds": sum(cost.seconds for cost in costs)} | {
        basis: sum(cost.seconds for cost in costs if cost.basis == basis) for basis in sorted(bases)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for published_steps.json")
    out: Path = parser.parse_args().out
    found = {}
    print("| model | slice | batch | published s | predicted s | predicted / published |\n|---|---|---|---|---|---|")
    for run in RUNS:
        begun = time.monotonic()
        predicted = predict(run)
        low, high = run.seconds
        ratio = predicted["seconds"] / ((low + high) / 2)
        published = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
        print(
            f"| {run.name} | {run.accelerator_type} | {run.batch} | {published} ({run.source}) | "
            f"{predicted['seconds']:.4f} | {ratio:.2f} |", flush=True,
        )  # fmt: skip
        found[run.name] = {
            **predicted, "published": run.seconds, "ratio": ratio, "compiled_in": time.monotonic() - begun
        }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "published_steps.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
