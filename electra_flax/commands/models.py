"""electra-flax show, verify, detect, fill and score: what a model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

from electra_flax.commands.common import Devices, Texts, texts_or_stdin
from electra_flax.config.ranges import Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import console, print_json, print_line, progress
from electra_flax.runtime.flags import Flag, Folder, Place

if TYPE_CHECKING:
    from electra_flax import Detected, Filled, Model, Scored

    Answer = TypeVar("Answer", Detected, Filled, Scored)

_TOGETHER = 256
"""Sentences that are answered between two looks at the bar."""


class Show(Devices):
    """Show what the discriminator detects, in colour.

    Lets the generator of an export replace words of held-out examples and shows which of them the discriminator finds:
    in a few examples word by word, in all of them as numbers. Give --model and --data several times to compare models,
    each on shards of its own vocabulary.
    """

    model: Annotated[tuple[Folder, ...], Flag(action="append")]
    """an export of both models, or tiny-ko, which ships with the package (a folder of that name comes first); examples
    are shown of the first"""
    data: Annotated[tuple[Place, ...], Flag(action="append")]
    """shards with a validation split"""
    examples: Annotated[int, Range(1, 10_000), "N"] = 4
    """examples to show"""

    def run(self) -> None:
        if len(self.model) != len(self.data):
            raise UserError(
                f"--model {len(self.model)} times and --data {len(self.data)} times: give each model shards of its "
                "vocabulary"
            )
        self.use_devices()
        from electra_flax.reports import replaced
        from electra_flax.storage.staging import stage

        tallies = {}
        for number, (model, data) in enumerate(zip(self.model, self.data, strict=True)):
            detections = replaced.detect(str(model), stage(data, without="train"))
            if number == 0:
                touched = [detection for detection in detections if detection.is_replaced.any()]
                replaced.show(touched[: self.examples], console())
            tallies[str(model)] = replaced.tally(detections)
        replaced.compare(tallies, console())


class Verify(Devices):
    """Compare a published model in every framework, layer by layer.

    Loads a published model through every framework that is installed (Flax, PyTorch, TensorFlow) and prints how far
    hidden states and logits are from our forward pass, layer by layer; with --against also how far those of other
    weights are. Exit code 1 beyond the tolerance.
    """

    model: Place
    """an export of both models, a model's own folder, OWNER/NAME on the hub, or tiny-ko, which ships with the package
    (a folder of that name comes first)"""
    against: Annotated[Place | None, "SOURCE"] = None
    """what should be the same model: DIR, hf:DISC[,GEN], tf1:PREFIX, orbax:DIR or tiny-ko"""
    tolerance: Annotated[float, Range(0, 10**6), "X"] = 1e-4
    """largest difference"""
    json: bool = False
    """print JSON instead of the table"""

    def run(self) -> int:
        self.use_devices()
        from electra_flax.weights import verify

        found = verify.verify(self.model, self.against)
        compared = [(part, name, each) for part, hands in found.items() for name, each in hands.items() if each]
        beyond = [(part, name) for part, name, each in compared if not each.largest <= self.tolerance]  # NaN is beyond
        if self.json:
            plain = {
                part: {name: each.to_dict() if each else None for name, each in hands.items()}
                for part, hands in found.items()
            }
            print_json({"tolerance": self.tolerance, "within": not beyond, **plain})
        else:
            for part, hands in found.items():
                console().print(verify.table(part, hands, self.tolerance))
            print("; ".join(f"{part} in {name}: beyond {self.tolerance:g}" for part, name in beyond)
                  or f"all within {self.tolerance:g}")  # fmt: skip
        return 1 if beyond else 0


class Asking(Devices):
    """Sentences."""

    model: Place
    """an export of both models, a model's own folder, OWNER/NAME on the hub, a workdir, a source (hf:, tf1:, orbax:),
    or tiny-ko, which ships with the package (a folder of that name comes first)"""
    texts: Annotated[Texts, "SENTENCE"] = ()
    """none: lines of the standard input"""
    json: bool = False
    """print JSON"""

    def ask(self, answer: Callable[[Model, list[str]], list[Answer]]) -> list[Answer]:
        """Return what the model answers to each sentence, with a bar where it takes long; printed, if as JSON."""
        texts = texts_or_stdin(self.texts)
        self.use_devices()
        from electra_flax.api.models import load

        model, found = load(self.model), []
        with progress(len(texts), "answering", "sentences", delay=5) as bar:
            for start in range(0, len(texts), _TOGETHER):
                found += answer(model, texts[start : start + _TOGETHER])
                bar.update(len(texts[start : start + _TOGETHER]))
        if self.json:
            print_json([dataclasses.asdict(each) for each in found])
        return found


class Detect(Asking):
    """Tell which words of a sentence look replaced.

    The discriminator's probability, for each piece of your sentences, that it was replaced; suspicious ones in colour.
    With --json every piece and word, its place and probability.
    """

    def run(self) -> None:
        answers = self.ask(lambda model, texts: model.detect(texts))
        if self.json:
            return
        from electra_flax.reports import coloured

        if any(coloured.is_marked(piece) for answer in answers for piece in answer.pieces):
            console().print(coloured.legend())
        for answer in answers:
            console().print(coloured.coloured(answer))


class Fill(Asking):
    """Tell what the generator would put at [MASK].

    The generator's likeliest tokens for each [MASK] in your sentences.
    """

    top: Annotated[int, Range(1, 10_000), "N"] = 5
    """candidates to show"""

    def run(self) -> None:
        answers = self.ask(lambda model, texts: model.fill(texts, self.top))
        for answer in () if self.json else answers:
            print_line(answer.text)
            for mask in answer.masks:
                print_line("  " + "  ".join(f"{each.token} {each.probability:.1%}" for each in mask))


class Score(Asking):
    """Tell how likely the generator finds a sentence, and each of its words.

    The pseudo-log-likelihood of your sentences: each token is masked in turn, and the natural logarithms of the
    generator's probabilities of them are added up. As many passes as there are tokens, many at a time. First the sum,
    then the mean of its tokens, by which sentences of unlike length are compared.
    """

    def run(self) -> None:
        answers = self.ask(lambda model, texts: model.score(texts))
        for answer in () if self.json else answers:
            mean = answer.log_likelihood / len(answer.pieces)
            print_line(f"{answer.log_likelihood:.2f} ({mean:.2f} a token)  {answer.text}")
            print_line("  " + "  ".join(f"{piece.token} {piece.log_likelihood:.2f}" for piece in answer.pieces))
