"""README.md of a published model, what Hugging Face's hub shows of it: from what the run wrote down."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import yaml

from electra_flax.config.architecture import ModelConfig
from electra_flax.data.manifest import Manifest
from electra_flax.errors import UserError, counted
from electra_flax.training.charts import draw, learning_panels
from electra_flax.training.history import History
from electra_flax.weights import hub
from electra_flax.weights.parity import ARCHITECTURES
from electra_flax.weights.sources import Weights

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


# The hub's documentation, "Licenses", as it was in 2026; huggingface_hub has no list. It grows: others are passed on.
_LICENSES = """
apache-2.0 mit openrail openrail++ bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
creativeml-openrail-m deepfloyd-if-license afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research
lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
""".split()
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile("[a-z]{2,3}|code|multilingual")  # ISO 639, whose lists are long, and two words of the hub's


@dataclass(frozen=True)
class Publication:
    """What only the publisher knows."""

    license: str = ""
    """The hub's identifier of one, as apache-2.0; "" leaves it open."""
    language: str = ""
    """The code of a language, as ko; "" leaves it open."""
    repository: str = ""
    """OWNER/NAME on the hub, to which -discriminator and -generator are added; "" leaves the models unpublished."""
    license_name: str = ""
    """Of a licence without identifier, whose `license` is other."""
    license_link: str = ""
    """Where its text is."""

    def __post_init__(self) -> None:
        if self.license and not _LICENSE.fullmatch(self.license):
            raise UserError(
                f"--license {self.license}: no identifier of the hub's{self._nearest()}; expected one such as "
                "apache-2.0, mit or cc-by-sa-4.0; one that has none is --license other --license-name NAME"
            )
        if (self.license_name or self.license_link) and self.license != "other":
            raise UserError(
                "--license-name and --license-link are of a licence without identifier: add --license other"
            )
        if self.language and not _LANGUAGE.fullmatch(self.language):
            raise UserError(
                f"--language {self.language}: not a code of a language; expected two or three small letters (ISO 639) "
                "such as ko or en, without a region, or multilingual"
            )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What may be wrong, to be told to the user."""
        if not self.license or self.license in _LICENSES:
            return ()
        return (
            f"--license {self.license}: not among the hub's identifiers that this release knows{self._nearest()}; "
            "if the hub does not know it either, give --license other --license-name NAME",
        )

    def header(self) -> list[str]:
        """Lines of YAML."""
        given = {name: getattr(self, name) for name in ("license", "license_name", "license_link", "language")}
        return [f"{name}: {_yaml(value)}" for name, value in given.items() if value]

    def _nearest(self) -> str:
        found = difflib.get_close_matches(re.sub(r"[\s_]+", "-", self.license.lower()), _LICENSES, 1)
        return f" (did you mean {found[0]}?)" if found else ""


def _yaml(value: str) -> str:
    """Quoted where it needs to be, such as no, which is Norwegian and YAML's word for false."""
    return yaml.safe_dump(value, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def model_card(weights: Weights, part: str, sizes: ModelConfig, publication: Publication) -> dict[str, str | bytes]:
    """{file name: content}: README.md and, of a run, the picture of its curves."""
    does, tag = _DOES[part]
    header = ["library_name: transformers"]
    header += [*publication.header(), "tags:", "- electra", "- electra-flax", f"- {tag}"]
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
        _license(publication),
        "## Citation",
        _CITATION,
    ]
    files: dict[str, str | bytes] = {"README.md": "\n\n".join(sections) + "\n"}
    if history is not None:
        files[CURVES] = draw([history], learning_panels([history]))
    return files


def _license(publication: Publication) -> str:
    said = publication.license_name or publication.license or "Not stated by its publisher."
    return f"{said} ({publication.license_link})" if publication.license_link else said


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
    run = weights.run
    assert run is not None
    config = run.read_config()
    sections = ["## Training"]
    if (run.folder / "manifest.json").exists():
        manifest = Manifest.read(run.folder)
        documents = sum(int(source["documents"]) for source in manifest.sources)
        size = sum(int(source["bytes"]) for source in manifest.sources)
        files = counted(len(manifest.sources), "files")
        sections.append(
            f"Data: {counted(documents, 'documents')} in {files} ({_readable(size)}), of "
            f"which {manifest.examples('train'):,} sequences ({manifest.tokens('train'):,} tokens) were trained on and "
            f"{manifest.examples('validation'):,} held out; {manifest.unk_rate:.2%} of the pieces are unknown. "
            + _cleaning(dict(manifest.cleaning))
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


def _readable(size: float) -> str:
    """A number of bytes as people say it: 60 KB."""
    unit = "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _cleaning(options: dict[str, Any]) -> str:
    """The steps of a manifest's cleaning that were on, how often each changed or dropped a text, and their settings."""
    steps, counts = options.get("steps", ()), options.get("changed_or_dropped", {})
    if not steps:
        return ""
    settings = {"sentences": "splitter", "short": "min_characters", "near-duplicates": "near_similarity"}

    def shown(step: str) -> str:
        said = [f"{settings[step]} {options[settings[step]]}"] if settings.get(step) in options else []
        said += [f"{counts[step]:,} texts"] if step in counts else []
        return f"{step} ({', '.join(said)})" if said else step

    return f"Cleaning, recipe {options.get('recipe', 'none')}: {', '.join(map(shown, steps))}."


def _table(values: dict[str, object] | dict[str, str]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| | |\n| --- | --- |\n{rows}"
