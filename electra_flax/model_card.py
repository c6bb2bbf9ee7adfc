"""README.md of a published model, what Hugging Face's hub shows of it: from what the run wrote down."""

from __future__ import annotations

from typing import NamedTuple

from electra_flax import hub
from electra_flax.charts import LEARNING, draw
from electra_flax.config import ModelConfig
from electra_flax.errors import UserError
from electra_flax.history import History
from electra_flax.parity import ARCHITECTURES
from electra_flax.records import Manifest
from electra_flax.weights import Weights

CURVES = "training.png"
_DOES = {
    "discriminator": ("tells replaced tokens from original ones; fine-tune this one", "replaced-token-detection"),
    "generator": ("fills in `[MASK]`; use it to continue pretraining", "fill-mask"),
}
_CITATION = """```bibtex
@inproceedings{clark2020electra,
  title = {{ELECTRA}: Pre-training Text Encoders as Discriminators Rather Than Generators},
  author = {Kevin Clark and Minh-Thang Luong and Quoc V. Le and Christopher D. Manning},
  booktitle = {ICLR},
  year = {2020},
  url = {https://openreview.net/pdf?id=r1xMH1BtvB}
}
```"""


class Publication(NamedTuple):
    """What only the publisher knows."""

    license: str = ""
    """The hub's identifier of one, as apache-2.0; "" leaves it open."""
    language: str = ""
    """The code of a language, as ko; "" leaves it open."""
    repository: str = ""
    """OWNER/NAME on the hub, to which -discriminator and -generator are added; "" leaves the models unpublished."""


def model_card(weights: Weights, part: str, sizes: ModelConfig, publication: Publication) -> dict[str, str | bytes]:
    """{file name: content}: README.md and, of a run, the picture of its curves."""
    does, tag = _DOES[part]
    header = ["library_name: transformers"]
    header += [f"license: {publication.license}"] if publication.license else []
    header += [f"language: {publication.language}"] if publication.language else []
    header += ["tags:", "- electra", "- electra-flax", f"- {tag}"]
    history = _history(weights)
    sections = [
        "---\n" + "\n".join(header) + "\n---",
        f"# ELECTRA {part}",
        f"An ELECTRA {part} ({does}), {_origin(weights)}.",
        "| layers | hidden | embedding | heads | feed-forward | vocabulary | positions |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {sizes.num_hidden_layers} | {sizes.hidden_size} | {sizes.embedding_size} | {sizes.num_attention_heads} "
        f"| {sizes.intermediate_size} | {sizes.vocab_size:,} | {sizes.max_position_embeddings} |",
        _usage(part, publication.repository),
        *(_training(weights, history) if weights.run else []),
        "## Licence",
        publication.license or "Not stated by its publisher.",
        "## Citation",
        _CITATION,
    ]
    files: dict[str, str | bytes] = {"README.md": "\n\n".join(sections) + "\n"}
    if history is not None:
        files[CURVES] = draw([history], LEARNING)
    return files


def _history(weights: Weights) -> History | None:
    try:
        return History.read(str(weights.run)) if weights.run else None
    except UserError:  # a run without records is published all the same
        return None


def _origin(weights: Weights) -> str:
    if weights.run is None:
        return f"converted by electra-flax from {weights.source.partition(':')[0]} weights"
    return f"pretrained with electra-flax for {weights.step:,} steps"


def _usage(part: str, repository: str) -> str:
    name = ARCHITECTURES[part]
    place = hub.repositories(repository, [part])[part] if repository else part
    return f"""## Usage

```python
from transformers import AutoTokenizer, {name}

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = {name}.from_pretrained("{place}")  # PyTorch
```

In Flax and TensorFlow, which transformers has up to version 4.57, `Flax{name}` and `TF{name}` load the same folder."""


def _training(weights: Weights, history: History | None) -> list[str]:
    config, run = weights.config, weights.run
    assert run is not None
    sections = ["## Training"]
    if (run.folder / "manifest.json").exists():
        manifest = Manifest.read(run.folder)
        documents = sum(int(source["documents"]) for source in manifest.sources)
        size = sum(int(source["bytes"]) for source in manifest.sources)
        sections.append(
            f"Data: {documents:,} documents in {len(manifest.sources):,} files ({size / 1e9:.3g} GB), of which "
            f"{manifest.examples('train'):,} sequences ({manifest.tokens('train'):,} tokens) were trained on and "
            f"{manifest.examples('validation'):,} held out; {manifest.unk_rate:.2%} of the pieces are unknown. "
            + (f"Cleaning: {', '.join(manifest.cleaning)}." if manifest.cleaning else "")
        )
    optimizer, training = config.optimizer, config.training
    settings = {
        "steps": f"{weights.step:,} of {training.num_steps:,}",
        "sequences a step": training.batch_size,
        "tokens a sequence": config.data.max_seq_length,
        "optimizer": optimizer.algorithm,
        "learning rate": optimizer.learning_rate,
        "warmup steps": f"{optimizer.warmup_steps:,}",
        "weight decay": optimizer.weight_decay,
        "dropout": config.model.hidden_dropout_prob,
        "masked": f"{config.masking.mask_prob:.0%}",
        "generator (layers, hidden)": f"{config.generator.num_hidden_layers}, {config.generator.hidden_size}",
        "discriminator weight": config.objective.discriminator_weight,
        "computed in": training.compute_dtype,
    }
    if config.long_phase.steps:
        long = config.long_phase
        settings["last steps"] = f"{long.steps:,} of {long.batch_size} sequences of {long.max_seq_length} tokens"
    sections.append(_table(settings))
    if history is None:
        return sections
    if history.validation:
        last = history.validation[-1]
        shown = {name: f"{value:.4g}" for name, value in last.items() if isinstance(value, float) and name != "time"}
        sections += [f"Held-out metrics at step {last['step']:,}:", _table(shown)]
    return [*sections, f"![curves of training and held-out metrics]({CURVES})"]


def _table(values: dict[str, object] | dict[str, str]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| | |\n| --- | --- |\n{rows}"
