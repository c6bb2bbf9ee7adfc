"""electra-flax show, verify, detect and fill: what a model does."""

import itertools
from typing import Annotated

from electra_flax.commands.common import Devices, Texts, texts_or_stdin
from electra_flax.config.ranges import Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import console, print_json, print_line
from electra_flax.runtime.flags import Flag, Folder, Place


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


class Detect(Devices):
    """Tell which words of a sentence look replaced.

    The discriminator's probability, for each piece of your sentences, that it was replaced; suspicious ones in colour.
    """

    model: Place
    """an export of both models, a model's own folder, OWNER/NAME on the hub, or tiny-ko, which ships with the package
    (a folder of that name comes first)"""
    texts: Annotated[Texts, "SENTENCE"] = ()
    """none: lines of the standard input"""
    json: bool = False
    """print JSON: every piece, its place and probability"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.reports import sentences

        texts = texts_or_stdin(self.texts)
        answers = sentences.detect(self.model, texts)
        if self.json:
            found = [{"text": text, "pieces": [piece._asdict() for piece in pieces]}
                     for text, pieces in zip(texts, answers, strict=True)]  # fmt: skip
            print_json(found)
            return
        output = console()
        if any(map(sentences.is_marked, itertools.chain.from_iterable(answers))):
            output.print(sentences.legend())
        for text, pieces in zip(texts, answers, strict=True):
            output.print(sentences.coloured(text, pieces))


class Fill(Devices):
    """Tell what the generator would put at [MASK].

    The generator's likeliest tokens for each [MASK] in your sentences.
    """

    model: Place
    """an export of both models, a model's own folder, OWNER/NAME on the hub, or tiny-ko, which ships with the package
    (a folder of that name comes first)"""
    texts: Annotated[Texts, "SENTENCE"] = ()
    """with [MASK]; none: lines of the standard input"""
    top: Annotated[int, Range(1, 10_000), "N"] = 5
    """candidates to show"""
    json: bool = False
    """print JSON"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.reports import sentences

        texts = texts_or_stdin(self.texts)
        answers = sentences.fill(self.model, texts, self.top)
        if self.json:
            found = [{"text": text, "masks": [[candidate._asdict() for candidate in mask] for mask in masks]}
                     for text, masks in zip(texts, answers, strict=True)]  # fmt: skip
            print_json(found)
            return
        for text, masks in zip(texts, answers, strict=True):
            print_line(text)
            for candidates in masks:
                print_line("  " + "  ".join(f"{token} {probability:.1%}" for token, probability in candidates))
