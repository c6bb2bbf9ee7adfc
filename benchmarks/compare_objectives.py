"""Variants of a recipe at equal floating-point operations, judged on one common set of corruptions.

Each variant is a few fields in place of the recipe's. Its steps, and its warmup, are chosen so that all its matrix
products cost what the recipe's num_steps cost (electra_flax/training/flops.py). Each is trained with every seed. Then
every discriminator is asked about the same held-out rows, corrupted once by one fixed generator: its own generator's
replacements would be easier or harder than another's. Runs and answers are kept: the same command goes on.

    electra-data shard --corpus TEXT --vocab tiny-ko --max-seq-length 64 --validation-fraction 0.02 --out shards
    python benchmarks/compare_objectives.py --data shards --out runs/compare --steps 2000 --seeds 3 \\
        --variant hot generator.untied_generator=true objective.temperature=1.5

AUC and gain are of the common set. Gain: nats a token below the entropy of the share of replaced tokens, which is what
knows only how many there are. A generator of its own makes more or fewer replacements than the common one, which costs
a discriminator gain and says nothing of what it sees; "share told" is the gain after one number, the same for all
tokens, was added to its logits. The common set is made by --generator: a variant that trained on its samples (frozen)
is at home there, so freeze another one. What a frozen generator's own training cost is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from scipy.optimize import minimize_scalar
from scipy.special import entr
from scipy.stats import rankdata

import electra_flax
from electra_flax import formats
from electra_flax.config.loading import config_fields, resolved
from electra_flax.config.schema import Config
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.errors import UserError
from electra_flax.files import replaced, write_whole
from electra_flax.model import electra
from electra_flax.runtime.processes import use_cpu_where_there_is_nothing_else
from electra_flax.training.flops import step_flops
from electra_flax.weights.sources import find_part, find_weights

_AT_ONCE = 32  # a generator's logits of 32 rows of 128 tokens and 35,000 entries are 570 MB
_MEASURES = {"auc": "AUC", "gain": "gain, nats", "gain_share_told": "gain, share told"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="the recipe: a preset or a file (tiny)")
    parser.add_argument("--data", type=Path, required=True, help="shards with a validation split")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, results.jsonl and table.md")
    parser.add_argument("--variants", type=Path, default=Path(__file__).with_name("variants.yaml"),
                        help="YAML of names and their fields (variants.yaml beside this script)")  # fmt: skip
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "FIELD=VALUE"),
                        help="one more, or another one of that name")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the variants, these; the first is the reference")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of all variants")
    parser.add_argument("--steps", type=int, help="of the recipe as it stands (default: its num_steps)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (3)")
    parser.add_argument("--generator", default="tiny-ko", help="makes the common corruptions (tiny-ko)")
    parser.add_argument("--rows", type=int, default=1024, help="held-out rows that are corrupted, at most (1,024)")
    parser.add_argument("--task", action="append", default=[], metavar="NAME=DIR",
                        help="a task of finetune and its files: fine-tune on it too")  # fmt: skip
    args = parser.parse_args()
    use_cpu_where_there_is_nothing_else()
    try:
        args.tasks = as_fields(args.task)
        print(compare(args), end="")
    except UserError as error:
        print(f"compare_objectives: error: {error}", file=sys.stderr)
        return 1
    return 0


# ------------------------------------------------------------------------------------------------------------ variants


class Variant(NamedTuple):
    """A run but for its seed."""

    name: str
    config: Config
    step_flops: int

    def of_seed(self, seed: int) -> Config:
        """Return the run that is drawn, initialised and shuffled with this seed."""
        training = dataclasses.replace(self.config.training, seed=seed)
        return dataclasses.replace(
            self.config, training=training, data=dataclasses.replace(self.config.data, shuffle_seed=seed)
        )


def read_variants(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each variant's fields. Raises UserError for another form and for a name that --only has alone."""
    found: Any = yaml.safe_load(args.variants.read_text(encoding="utf-8"))
    if not isinstance(found, Mapping) or not all(isinstance(fields, Mapping) for fields in found.values()):
        raise UserError(f"{args.variants}: expected names, and of each its fields: NAME: {{FIELD: VALUE}}")
    variants = {str(name): dict(fields) for name, fields in found.items()}
    variants |= {name: as_fields(pairs) for name, *pairs in args.variant}
    if unknown := [name for name in args.only or () if name not in variants]:
        raise UserError(f"--only {unknown[0]}: no such variant; there are {', '.join(variants)}")
    if len({folder(name) for name in variants}) < len(variants):
        raise UserError(f"two variants of one folder: make the names differ in their letters: {', '.join(variants)}")
    return {name: variants[name] for name in args.only or variants}


def folder(name: str) -> str:
    """Return the name of a variant's folders but for the seed."""
    return re.sub(r"\W+", "-", name)


def as_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """Return FIELD=VALUE pairs as fields, values as YAML has them. Raises UserError."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"{pair}: expected FIELD=VALUE")
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def of_equal_cost(args: argparse.Namespace) -> list[Variant]:
    """Return the variants with as many steps as cost what the first one's cost."""
    common, found = as_fields(args.set), []
    for name, fields in read_variants(args).items():
        config = resolved(args.config, common | fields)
        flops = step_flops(config)
        steps = args.steps or config.training.num_steps
        if found:
            steps = round(found[0].config.training.num_steps * found[0].step_flops / flops)
        warmup = round(config.optimizer.warmup_steps / config.training.num_steps * steps)
        changed = {"training.num_steps": steps, "optimizer.warmup_steps": warmup}
        found.append(Variant(name, resolved(args.config, common | fields | changed), flops))
    return found


# ------------------------------------------------------------------------------------------------------ the common set


class Corrupted(NamedTuple):
    """The common set, int32 [B, T] each."""

    ids: np.ndarray
    mask: np.ndarray
    is_replaced: np.ndarray
    is_judged: np.ndarray
    """Whether it is a token of the text: neither padding nor [CLS] nor [SEP]."""


def common_set(args: argparse.Namespace, share: float) -> Corrupted:
    """Return held-out rows in which the fixed generator replaced `share` of the tokens; made once. Raises UserError."""
    data = DataFolder.open(args.data, without="train")
    generator = find_part(args.generator, "generator")
    if data.manifest is None or not data.manifest.examples("validation"):
        raise UserError(f"--data {args.data}: no validation split to judge on")
    if generator.vocabulary is None or data.manifest.vocab_sha256 != generator.vocabulary.sha256:
        raise UserError(f"--data {args.data}: shards of another vocabulary than that of --generator {args.generator}")
    settings = json.dumps({
        "generator": args.generator, "vocabulary": data.manifest.vocab_sha256, "rows": args.rows, "share": share,
        "files": [str(file.resolve()) for file in data.splits["validation"]],
    })  # fmt: skip
    path = args.out / "common.npz"
    if path.exists():
        with np.load(path) as kept:
            if str(kept["settings"]) != settings:
                raise UserError(f"{path}: made of other rows or by another generator: choose another --out")
            return Corrupted(*(kept[name] for name in Corrupted._fields))
    found = corrupt(data, generator, args.rows, share)
    with replaced(path) as part, part.open("wb") as file:
        np.savez_compressed(file, settings=settings, **found._asdict())
    return found


def corrupt(data: DataFolder, generator: Any, most: int, share: float) -> Corrupted:
    manifest, special = data.manifest, generator.vocabulary.special
    examples = ShardedExamples(data.splits["validation"], manifest.max_seq_length, manifest.vocab_size)
    ids_BT, mask_BT, _ = np.moveaxis(examples.read(range(min(most, len(examples)))), 1, 0)
    rng = np.random.default_rng(0)
    is_judged_BT = ~np.isin(ids_BT, [special.pad, special.cls, special.sep])
    is_masked_BT = is_judged_BT & (rng.random(ids_BT.shape) < share)
    params, corrupted_BT = generator.to_params(), ids_BT.copy()
    place_BT = np.broadcast_to(np.arange(ids_BT.shape[1], dtype=np.int32), ids_BT.shape)

    @jax.jit
    def logits_BTV(ids_BT: jax.Array, mask_BT: jax.Array, place_BT: jax.Array) -> jax.Array:
        types_BT = jax.numpy.zeros_like(ids_BT)
        return electra.apply_generator(generator.architecture, params, ids_BT, mask_BT, types_BT, place_BT)

    for rows in np.array_split(np.arange(len(ids_BT)), -(-len(ids_BT) // _AT_ONCE)):
        is_masked = is_masked_BT[rows]
        hidden = np.where(is_masked, special.mask, ids_BT[rows]).astype(np.int32)
        logits = np.asarray(logits_BTV(hidden, mask_BT[rows], place_BT[rows]))[is_masked].astype(np.float64)
        some = ids_BT[rows]
        some[is_masked] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
        corrupted_BT[rows] = some
    return Corrupted(corrupted_BT, mask_BT, (corrupted_BT != ids_BT).astype(np.int32), is_judged_BT.astype(np.int32))


def judge(place: str, common: Corrupted) -> dict[str, float]:
    """Return what a run's discriminator makes of the common set."""
    weights = find_weights(place)
    params = weights.to_params()

    @jax.jit
    def logits_BT(ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        types_BT = jax.numpy.zeros_like(ids_BT)
        return electra.apply_discriminator(weights.architecture, params, ids_BT, mask_BT, types_BT)

    groups = np.array_split(np.arange(len(common.ids)), -(-len(common.ids) // _AT_ONCE))
    logits = np.concatenate([np.asarray(logits_BT(common.ids[rows], common.mask[rows])) for rows in groups])
    chosen = common.is_judged == 1
    return measured(logits[chosen].astype(np.float64), common.is_replaced[chosen] == 1)


def measured(logits: np.ndarray, is_replaced: np.ndarray) -> dict[str, float]:
    """Return AUC by ranks, and the gain over the share's entropy as it is and with the share told."""
    positive, share = int(is_replaced.sum()), float(is_replaced.mean())
    ranks = rankdata(logits)[is_replaced].sum()
    auc = (ranks - positive * (positive + 1) / 2) / (positive * (len(logits) - positive))

    def loss(shift: float) -> float:
        return float(np.mean(np.logaddexp(0, logits + shift) - is_replaced * (logits + shift)))

    entropy = float(entr(share) + entr(1 - share))
    return {"auc": float(auc), "gain": entropy - loss(0.0), "gain_share_told": entropy - minimize_scalar(loss).fun}


# ----------------------------------------------------------------------------------------------------------- the whole


def compare(args: argparse.Namespace) -> str:
    """Train and judge what is not there yet; return the table, which is written too."""
    variants = of_equal_cost(args)
    args.out.mkdir(parents=True, exist_ok=True)
    common = common_set(args, variants[0].config.masking.mask_prob)
    path, runs = args.out / "results.jsonl", [(seed, each) for seed in range(args.seeds) for each in variants]
    results = read_results(path, runs)
    todo = [(seed, each) for seed, each in runs if not is_done(results.get((each.name, seed)), args)]
    began = time.monotonic()
    for number, (seed, variant) in enumerate(todo):
        # All runs cost the same.
        left = formats.duration((time.monotonic() - began) / number * (len(todo) - number)) if number else "?"
        print(f"run {len(runs) - len(todo) + number + 1} of {len(runs)}: {variant.name}, seed {seed}, "
              f"{variant.config.training.num_steps:,} steps; {left} to go", file=sys.stderr)  # fmt: skip
        results[variant.name, seed] = advance(args, variant, seed, common)
        write_whole(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in results.values()))
        jax.clear_caches()  # each variant has programs of its own
    text = table(variants, results, args)
    write_whole(args.out / "table.md", text)
    return text


def advance(args: argparse.Namespace, variant: Variant, seed: int, common: Corrupted) -> dict[str, Any]:
    """Return what is known of a run once it is trained, judged and fine-tuned; what was done is not done again."""
    config = variant.of_seed(seed)
    workdir = args.out / f"{folder(variant.name)}-{seed}"
    done = electra_flax.pretrain(config, args.data, workdir)
    found = {"variant": variant.name, "seed": seed, "steps": done.step, "fields": all_fields(config)}
    found |= {**judge(f"orbax:{workdir}", common), "held_out": done.held_out, "tasks": {}}
    for task, data in args.tasks.items():
        tuned = electra_flax.finetune(task, workdir, data, f"{workdir}-{folder(task)}", seeds=(seed,))
        metric, scores = next(iter(tuned.metrics.items()))
        found["tasks"][task] = {"metric": f"{tuned.task} {metric}", "value": scores.mean}
    return found


def is_done(found: Mapping[str, Any] | None, args: argparse.Namespace) -> bool:
    """Return whether a run was trained, judged, and fine-tuned on all tasks."""
    return found is not None and args.tasks.keys() <= found["tasks"].keys()


def read_results(path: Path, runs: Sequence[tuple[int, Variant]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what is known, by variant and seed. Raises UserError where it is of other fields than now."""
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    results = {(found["variant"], found["seed"]): found for found in known}
    for seed, variant in runs:
        found = results.get((variant.name, seed))
        fields = all_fields(variant.of_seed(seed))
        if found is not None and any(fields.get(name, value) != value for name, value in found["fields"].items()):
            raise UserError(f"{path}: {variant.name} was trained with other fields: choose another --out")
    return results


def all_fields(config: Config) -> dict[str, Any]:
    """Return all fields of a run, as JSON has them."""
    return json.loads(json.dumps(config_fields(config)))


def table(
    variants: Sequence[Variant], results: Mapping[tuple[str, int], Mapping[str, Any]], args: argparse.Namespace
) -> str:
    """Return Markdown: means and standard errors over seeds, and AUC's difference from the first variant by seed."""
    first, tasks = variants[0].name, list(args.tasks)
    head = ["variant", "steps", "TFLOP a step", *_MEASURES.values(), "AUC, difference"]
    head += [results[first, 0]["tasks"][task]["metric"] for task in tasks]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for variant in variants:
        of_seeds = [results[variant.name, seed] for seed in range(args.seeds)]
        values = [mean_and_error([found[measure] for found in of_seeds]) for measure in _MEASURES]
        scores = [[found["tasks"][task]["value"] for found in of_seeds] for task in tasks]
        differences = [found["auc"] - results[first, seed]["auc"] for seed, found in enumerate(of_seeds)]
        apart = "-" if variant.name == first else mean_and_error(differences)
        cells = [variant.name, f"{of_seeds[0]['steps']:,}", f"{variant.step_flops / 1e12:.4f}", *values, apart]
        cells += map(mean_and_error, scores)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_error(values: Sequence[float | None]) -> str:
    """Return `0.7312 ± 0.0021`: mean and standard error, which one value does not have. None: it is not defined."""
    values = [float("nan") if value is None else value for value in values]
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    sys.exit(main())
