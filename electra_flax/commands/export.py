"""electra-flax export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from electra_flax.commands.common import Devices
from electra_flax.config.ranges import MOST_INT32, Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import print_line, write_line
from electra_flax.runtime.flags import Command, File, Flag, Folder, Place

if TYPE_CHECKING:
    from electra_flax.weights.model_card import Publication
    from electra_flax.weights.weights import Weights


class Publishing(Command):
    """Publishing."""

    license: Annotated[str, "ID"] = ""
    """licence for the model card: apache-2.0 ..."""
    license_name: Annotated[str, "NAME"] = ""
    """with --license other: its name"""
    license_link: Annotated[str, "URL"] = ""
    """with --license other: link to its text"""
    language: Annotated[str, "CODE"] = ""
    """language for the model card: ko ..."""
    push: Annotated[Place | None, "OWNER/NAME"] = None
    """upload to OWNER/NAME-discriminator and OWNER/NAME-generator on the hub (needs HF_TOKEN or hf auth login)"""
    private: bool = False
    """with --push: make the repositories private"""


class Export(Publishing, Devices):
    """Write Hugging Face model folders, or a TensorFlow checkpoint.

    Writes OUT/discriminator and OUT/generator, each a complete Hugging Face model folder (safetensors for PyTorch,
    msgpack for Flax, tokenizer, model card), and OUT/parity.json: the largest differences between transformers' hidden
    states and logits and ours. The weights come from a run (--workdir) or from elsewhere (--from).
    """

    example = (
        "electra-flax export --workdir runs/ko --out models/ko\n"
        "electra-flax export --from tf1:model.ckpt-1000000 --out models/original"
    )

    workdir: Annotated[Place | None, Flag(one_of=True)] = None
    """a run"""
    from_: Annotated[Place | None, "SOURCE", Flag(one_of=True)] = None
    """hf:DISC[,GEN], tf1:PREFIX, orbax:DIR or tiny-ko"""
    out: Folder
    """folder to write"""
    to: Literal["hf", "tf1"] = "hf"
    """format: hf (Hugging Face), tf1 (a checkpoint of the original TensorFlow code)"""
    step: Annotated[int | None, Range(0, MOST_INT32), "N"] = None
    """step of the checkpoint (default: the newest)"""
    vocab: File | None = None
    """vocab.txt, if there is none beside the weights"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """type of the tensors"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.storage.workdir import refuse_inside
        from electra_flax.weights import hub
        from electra_flax.weights.export import export_to_tf1
        from electra_flax.weights.model_card import Publication
        from electra_flax.weights.sources import find_weights

        refuse_inside(self.out)
        self._check()
        publication = Publication(self.license, self.language, self.push or "", self.license_name, self.license_link)
        for remark in publication.remarks:
            write_line(f"warning: {remark}")
        weights = find_weights(self.from_ or f"orbax:{self.workdir}", self.step, self.vocab)
        repositories = hub.repositories(self.push, weights.architecture.parts) if self.push else {}
        if self.push:
            hub.check_login(self.push)
        for remark in weights.remarks:
            print_line(remark)
        if weights.unused:
            print_line(f"left out, not part of a pretrained ELECTRA: {', '.join(weights.unused)}")
        if self.to == "tf1":
            print_line(export_to_tf1(weights, self.out))
            return
        self._to_hugging_face(weights, publication)
        for part, repository in repositories.items():
            print_line(hub.push(self.out / part, repository, self.private))

    def _check(self) -> None:
        if self.to == "tf1" and self.dtype != "float32":
            raise UserError(f"--dtype {self.dtype}: --to tf1 writes float32 only: leave --dtype out")
        if self.private and not self.push:
            raise UserError("--private needs --push OWNER/NAME")
        if self.to == "tf1" and self.push:
            raise UserError(f"--push {self.push}: the hub takes the format hf: leave out --to tf1")

    def _to_hugging_face(self, weights: Weights, publication: Publication) -> None:
        from electra_flax.weights.export import export_to_hugging_face

        for part, differences in export_to_hugging_face(weights, self.out, self.dtype, publication).items():
            found = ", ".join(
                f"{framework} {'not installed' if largest is None else format(largest, '.1e')}"
                for framework, largest in differences.items()
            )
            print_line(f"{self.out / part}: largest difference from our outputs: {found}")
