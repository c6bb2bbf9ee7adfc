"""README.md of a published model, what Hugging Face's hub shows of it: from what the run wrote down."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from electra_flax import formats
from electra_flax.config.architecture import ModelConfig
from electra_flax.config.masking import MaskingConfig
from electra_flax.config.schema import Config
from electra_flax.data.manifest import Manifest
from electra_flax.errors import UserError
from electra_flax.formats import counted
from electra_flax.storage.workdir import read_run
from electra_flax.training.charts import draw, learning_panels
from electra_flax.training.history import History
from electra_flax.training.optimizers.sides import peaks_of
from electra_flax.weights import hub
from electra_flax.weights.parity import ARCHITECTURES
from electra_flax.weights.weights import Weights

CURVES = "training.png"
_DOES = {
    "discriminator": ("tells replaced tokens from original ones; fine-tune this one", "replaced-token-detection"),
    "generator": ("fills in `[MASK]`; use it to continue pretraining", "fill-mask"),
}
_ENERGY = (
    "gives each token an energy, how unlikely it is in its context; score texts with it, or fine-tune it",
    "electric",
)
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)

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
                f"--license {self.license}: not a licence identifier of the hub{self._nearest()}; expected one such as "
                "apache-2.0, mit or cc-by-sa-4.0; for any other licence, --license other --license-name NAME"
            )
        if (self.license_name or self.license_link) and self.license != "other":
            raise UserError("--license-name and --license-link need --license other")
        if self.language and not _LANGUAGE.fullmatch(self.language):
            raise UserError(
                f"--language {self.language}: not a language code; expected two or three lower-case letters (ISO 639) "
                "such as ko or en, without a region, or multilingual"
            )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what may be wrong, to be told to the user."""
        if not self.license or self.license in _LICENSES:
            return ()
        return (
            f"--license {self.license}: not among the hub's identifiers that this release knows{self._nearest()}; "
            "if the hub does not know it either, give --license other --license-name NAME",
        )

    def head(self, tags: list[str]) -> str:
        """Return what the hub reads: lines of YAML."""
        return ModelCardData(
            library_name="transformers", license=self.license or None, license_name=self.license_name or None,
            license_link=self.license_link or None, language=self.language or None, tags=tags,
        ).to_yaml(original_order=["library_name", "license", "license_name", "license_link", "language"])  # fmt: skip

    def _nearest(self) -> str:
        found = difflib.get_close_matches(re.sub(r"[\s_]+", "-", self.license.lower()), _LICENSES, 1)
        return f" (did you mean {found[0]}?)" if found else ""


_UNITS = {"token": "", "word": ", whole words", "span": ", spans of whole words"}


def _masked_tokens(masking: MaskingConfig) -> str:
    change = "" if masking.final_mask_prob is None else f" to {masking.final_mask_prob:.0%} at the last step"
    return f"{masking.mask_prob:.0%}{change}{_UNITS[masking.unit]}"


def model_card(weights: Weights, part: str, sizes: ModelConfig, publication: Publication) -> dict[str, str | bytes]:
    """Return {file name: content}: README.md and, of a run, the picture of its curves."""
    is_energy = part == "discriminator" and weights.architecture.logit == "energy"
    does, tag = _ENERGY if is_energy else _DOES[part]
    history = _history(weights)
    text = _TEMPLATES.get_template("model_card.md").render(
        head=publication.head(["electra", "electra-flax", tag]),
        part=part,
        does=does,
        origin=_origin(weights),
        sizes=sizes,
        name=ARCHITECTURES[part],
        is_energy=is_energy,
        place=hub.repositories(publication.repository, [part])[part] if publication.repository else part,
        training=_training(weights, history) if weights.run else None,
        curves=CURVES if history is not None else None,
        licence=_license(publication),
        table=_table,
    )
    files: dict[str, str | bytes] = {"README.md": text}
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


def _training(weights: Weights, history: History | None) -> dict[str, Any]:
    run = weights.run
    assert run is not None
    config, last = run.read_config(), {}
    if history is not None and history.validation:
        last = history.validation[-1]
    shown = {name: formats.number(value) for name, value in last.items() if isinstance(value, float) and name != "time"}
    settings = {"steps": f"{weights.step:,} of {config.training.num_steps:,}", **_recipe(config)}
    if config.generator.frozen is not None:
        digest = read_run(run.folder).frozen
        settings["generator"] = f"not trained with it (sha256 {digest[:12]})"  # not where it lay: that may be private
    settings |= _of_objective(config)
    if config.is_packed:
        how = f": {history.packed}" if history is not None and history.packed else ""
        settings["several sequences a row"] = f"up to {config.packing.segments}, which see nothing of each other{how}"
    if config.long_phase.steps:
        long = config.long_phase
        settings["long phase"] = (
            f"last {long.steps:,} steps, {long.batch_size:,} sequences of {long.max_seq_length:,} tokens"
            + ("" if long.mask_prob is None else f", {long.mask_prob:.0%} masked")
        )
    data = _data(Manifest.read(run.folder)) if (run.folder / "manifest.json").exists() else ""
    return {"data": data, "settings": settings, "held_out": shown, "held_out_step": f"{last.get('step', 0):,}"}


def _data(manifest: Manifest) -> str:
    documents = sum(int(source["documents"]) for source in manifest.sources)
    size = sum(int(source["bytes"]) for source in manifest.sources)
    files = counted(len(manifest.sources), "files")
    return (
        f"Data: {counted(documents, 'documents')} in {files} ({formats.size(size)}), of "
        f"which {manifest.examples('train'):,} sequences ({manifest.tokens('train'):,} tokens) were trained on and "
        f"{manifest.examples('validation'):,} held out; {manifest.unk_rate:.2%} of the pieces are unknown. "
        + _cleaning(dict(manifest.cleaning))
    )


def _recipe(config: Config) -> dict[str, str]:
    """Return what every run has, and the generator's sizes."""
    optimizer, training, architecture = config.optimizer, config.training, config.architecture
    settings = {
        "batch size (sequences)": f"{training.batch_size:,}",
        "sequence length (tokens)": f"{config.data.max_seq_length:,}",
        "optimizer": optimizer.algorithm,
        "learning rate": formats.number(optimizer.learning_rate),
        "warmup steps": f"{optimizer.warmup_steps:,}",
        "weight decay": formats.number(optimizer.weight_decay),
        "dropout": formats.number(config.model.hidden_dropout_prob),
        "masked tokens": _masked_tokens(config.masking),
        "compute dtype": training.compute_dtype,
    }
    if config.generator.dropout is not None:
        settings["generator dropout"] = formats.number(config.generator.dropout)
    if config.generator.uniform_generator:
        settings["replacements"] = "drawn uniformly from the vocabulary"
    if "generator" in architecture.parts or architecture.has_two_towers:
        generator = architecture.generator_sizes
        name = "each of the generator's two towers" if architecture.has_two_towers else "generator"
        settings[f"{name} (layers, hidden)"] = f"{generator.num_hidden_layers}, {generator.hidden_size}"
    return settings


def _of_objective(config: Config) -> dict[str, str]:
    """Return what a run has of the options of its objective, where they are not the original's."""
    objective, architecture, settings = config.objective, config.architecture, {}
    temperature = formats.number(objective.temperature)
    if objective.temperature_schedule != "constant":
        first = formats.number(objective.initial_temperature)
        settings["temperature of sampling"] = f"{first} to {temperature}, {objective.temperature_schedule}"
    elif objective.temperature != 1:
        settings["temperature of sampling"] = temperature
    if config.optimizer.decoupled:
        rate = peaks_of(config.optimizer).generator
        settings["generator's own optimizer, learning rate"] = formats.number(rate)
    if architecture.has_delta:
        settings["embeddings"] = "the discriminator's are the generator's and a difference (GDES), summed here"
    if architecture.has_discriminator_head and architecture.has_generator_head:
        settings["discriminator weight"] = formats.number(objective.discriminator_weight)
    if objective.corrective_lm_weight:
        weight = formats.number(objective.corrective_lm_weight)
        settings["corrective language modelling"] = (
            f"weight {weight} (experimental); the head that it had is left out here"
        )
    if objective.contrast_weight:
        weight, share = formats.number(objective.contrast_weight), formats.number(objective.contrast_from)
        settings["contrast of sequences"] = (
            f"weight {weight}, groups of {objective.contrast_rows}, from {share} of the steps on (experimental); the "
            "head that it had is left out here"
        )
    return settings


def _cleaning(options: dict[str, Any]) -> str:
    """Return a manifest's steps of cleaning that were on, with their settings and how often each changed a text."""
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
