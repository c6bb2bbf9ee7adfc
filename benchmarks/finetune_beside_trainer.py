"""Fine-tuning beside transformers' PyTorch Trainer and beside fresh weights: scores, or examples a second.

Scores: the same model folder, files, rows, hyperparameters and number of epochs; the last checkpoint counts on all
sides, so that nothing but the training, or the first weights, differs. The Trainer has torch's AdamW, which corrects
its bias, as ours does with the preset koelectra, and draws its own batches. It needs accelerate (pip install
accelerate), and the model as a folder.

    python benchmarks/finetune_beside_trainer.py scores --task korsts --model DIR --data DIR --out runs/bench
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \\
    python benchmarks/finetune_beside_trainer.py speed --task korsts --model DIR --data DIR --out runs/bench
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from electra_flax.config.schema import MeshConfig
from electra_flax.finetuning.batches import collate, epoch_batches
from electra_flax.finetuning.data import TaskData, read_task_data
from electra_flax.finetuning.encoding import IGNORED, Row
from electra_flax.finetuning.heads import Batch, make_head
from electra_flax.finetuning.predictions import decode, scores
from electra_flax.finetuning.publish import ARCHITECTURES
from electra_flax.finetuning.run import encoder_architecture, find_encoder
from electra_flax.finetuning.step import Network, Steps, make_batch, make_steps, predict_rows
from electra_flax.finetuning.task import Task, Training
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.runtime.compiler import set_up_compiler
from electra_flax.runtime.processes import use_cpu_where_there_is_nothing_else

_TORCH_IGNORES = -100  # labels that cross entropy leaves out
SIDES = ("ours", "fresh", "trainer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scores", "speed"))
    parser.add_argument("--task", required=True, help="a classification, a regression or a tagging")
    parser.add_argument("--model", type=Path, required=True, help="a discriminator's folder")
    parser.add_argument("--data", type=Path, required=True, help="the task's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of scores (0 1 2)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="of scores (all)")
    parser.add_argument("--steps", type=int, default=20, help="of speed: timed steps of each (20)")
    parser.add_argument("--out", type=Path, required=True, help="folder for finetune_WHAT.json")
    args, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.WARNING)
    use_cpu_where_there_is_nothing_else()
    set_up_compiler("~/.cache/electra-flax/compiled")
    task = load_task(args.task)
    weights = find_encoder(str(args.model))
    training = load_training(args.task, task, "koelectra", weights.architecture.model, overrides)
    if args.what == "speed":
        training = dataclasses.replace(training, batch_size=32, max_seq_length=128)
    assert weights.vocabulary is not None and weights.casing is not None
    data = read_task_data(task, args.data, training, weights.vocabulary, weights.casing, published_protocol=False)
    contest = Contest(task, training, data, args.model)
    found = contest.scores(args.seeds, args.sides) if args.what == "scores" else contest.speed(args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"finetune_{args.what}_{args.task}.json"
    path.write_text(json.dumps({"task": args.task, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    print(path)
    return 0


class Contest:
    """Both sides, with the same rows."""

    def __init__(self, task: Task, training: Training, data: TaskData, model: Path) -> None:
        self._task, self._training, self._data, self._model = task, training, data, model
        weights = find_encoder(str(model))
        architecture = encoder_architecture(weights, training)
        head = make_head(task, training.head, architecture.model, len(data.labels), training.dropout)
        assert weights.vocabulary is not None
        self._is_tagging = task.kind == "tagging"
        self._network = Network(
            architecture, head, make_mesh(MeshConfig()), weights.vocabulary.special.pad, self._is_tagging
        )
        params = weights.to_params()["electra"]
        self._params = {"electra": params}
        shapes = {**self._params, **jax.eval_shape(head.init, jax.random.key(0))}
        num_steps = training.steps_per_epoch(len(data.train.rows)) * training.epochs
        self._steps: Steps = make_steps(self._network, training, num_steps, shapes)

    # ---------------------------------------------------------------------------------------------------- scores

    def scores(self, seeds: Sequence[int], sides: Sequence[str]) -> dict[str, Any]:
        """Return {side: {metric: {"values", "mean", "deviation"}, "seconds"}}, in percent, and the number of epochs."""
        learn = {"ours": self._ours, "fresh": self._fresh, "trainer": self._trainer}
        found: dict[str, Any] = {"epochs": self._training.epochs}
        for side in sides:
            started, values = time.perf_counter(), []
            for seed in seeds:
                values.append(self._scored(learn[side](seed)))
                print(f"{side}, seed {seed}: {values[-1]}", flush=True)
            seconds = round(time.perf_counter() - started, 1)
            found[side] = {name: _summary([value[name] for value in values]) for name in self._task.metrics}
            found[side]["seconds"] = seconds
        return found

    def _scored(self, logits: list[np.ndarray]) -> dict[str, float]:
        task, labels, scored = self._task, self._data.labels, self._data.scored
        predictions = decode(task, labels, scored.examples, scored.rows, [{"logits": row} for row in logits], 0)
        return scores(task, labels, scored.examples, predictions)

    def _ours(self, seed: int) -> list[np.ndarray]:
        return self._learn(self._params, seed)

    def _fresh(self, seed: int) -> list[np.ndarray]:
        params = jax.jit(electra.init, static_argnums=0)(self._network.architecture, jax.random.key(seed))
        return self._learn({"electra": jax.device_get(params["electra"])}, seed)

    def _learn(self, params: dict[str, Any], seed: int) -> list[np.ndarray]:
        state = self._steps.init({**params, **self._network.head.init(jax.random.key(seed))})
        for epoch in range(self._training.epochs):
            for indices in epoch_batches(self._data.train.rows, self._training.batch_size, seed, epoch):
                state, _ = self._steps.train(state, self._batch(self._data.train.rows, indices), seed)
        outputs = predict_rows(
            self._network, self._steps.predict, state.params, self._data.scored.rows, self._training.batch_size,
            self._training.max_seq_length,
        )  # fmt: skip
        return [output["logits"] for output in outputs]

    def _batch(self, rows: Sequence[Row], indices: np.ndarray) -> Batch:
        return make_batch(self._network, rows, indices, self._training.batch_size, self._training.max_seq_length)

    def _trainer(self, seed: int) -> list[np.ndarray]:
        transformers.set_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._make_trainer(folder, seed, self._torch_rows(self._data.train.rows))
            trainer.train()
            trainer.args.group_by_length = False  # it would shuffle what is predicted too
            logits = trainer.predict(self._torch_rows(self._data.scored.rows)).predictions
        return list(logits[:, 0] if self._task.kind == "regression" else logits)  # of tags, what pads is cut by decode

    def _make_trainer(self, folder: str, seed: int, rows: list[dict[str, Any]], steps: int = -1) -> Any:
        how, classes = self._training, len(self._data.labels) or 1
        problem = "regression" if self._task.kind == "regression" else "single_label_classification"
        cls = getattr(transformers, ARCHITECTURES[self._task.kind])
        model = cls.from_pretrained(
            self._model, num_labels=classes, problem_type=problem, hidden_dropout_prob=how.dropout,
            attention_probs_dropout_prob=how.dropout,
        )  # fmt: skip
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=how.batch_size, num_train_epochs=how.epochs, max_steps=steps,
            learning_rate=how.learning_rate, weight_decay=how.weight_decay,
            warmup_ratio=how.warmup_proportion, adam_epsilon=how.epsilon, max_grad_norm=how.max_grad_norm,
            lr_scheduler_type="linear", seed=seed, use_cpu=True, report_to=[], remove_unused_columns=False,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, group_by_length=steps < 0,
        )  # fmt: skip
        return transformers.Trainer(model, arguments, train_dataset=rows, data_collator=self._collate)

    def _torch_rows(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        scale = self._task.largest_score if self._task.kind == "regression" else 1
        return [{"row": row, "input_ids": row.input_ids, "labels": row.target * scale} for row in rows]

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch = collate(
            [row["row"] for row in rows],
            np.arange(len(rows)),
            len(rows),
            longest,
            self._network.pad_id,
            self._is_tagging,
        )
        tensors = {name: torch.tensor(batch[name]).long() for name in ("input_ids", "attention_mask", "token_type_ids")}
        if self._is_tagging:
            labels = torch.tensor(np.where(batch["target"] == IGNORED, _TORCH_IGNORES, batch["target"]))
        else:
            labels = torch.tensor(np.asarray([row["labels"] for row in rows]))
        return tensors | {"labels": labels if self._task.kind == "regression" else labels.long()}

    # ----------------------------------------------------------------------------------------------------- speed

    def speed(self, count: int) -> dict[str, Any]:
        """Return examples a second at batch 32 and 128 tokens, in turn."""
        rows = [_filled(row, 128) for row in self._data.train.rows[: 32 * count]]
        state = self._steps.init({**self._params, **self._network.head.init(jax.random.key(0))})
        batches = [self._batch(rows, np.arange(32) + 32 * i) for i in range(len(rows) // 32)]
        for batch in batches[:2]:
            state, sums = self._steps.train(state, batch, 0)
        jax.block_until_ready(sums)
        seconds: dict[str, list[float]] = {"ours": [], "trainer": []}
        with tempfile.TemporaryDirectory() as folder:
            torch_rows = self._torch_rows(rows)
            self._make_trainer(folder, 0, torch_rows, steps=2).train()
            for _ in range(3):
                started = time.perf_counter()
                for batch in batches:
                    state, sums = self._steps.train(state, batch, 0)
                jax.block_until_ready(sums)
                seconds["ours"].append(time.perf_counter() - started)
                trainer = self._make_trainer(folder, 0, torch_rows, steps=len(batches))
                started = time.perf_counter()
                trainer.train()
                seconds["trainer"].append(time.perf_counter() - started)
        rates = {name: 32 * len(batches) / float(np.median(values)) for name, values in seconds.items()}
        return {"examples_per_second": rates, "ratio": rates["ours"] / rates["trainer"], "seconds": seconds}


def _summary(values: list[float]) -> dict[str, Any]:
    return {"values": values, "mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}


def _filled(row: Row, length: int) -> Row:
    ids, types = np.resize(row.input_ids, length), np.resize(row.token_type_ids, length)
    return row._replace(input_ids=ids, token_type_ids=types)


if __name__ == "__main__":
    raise SystemExit(main())
