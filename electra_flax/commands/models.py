"""electra-flax show, verify, detect, fill and score: what a model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from electra_flax import formats
from electra_flax.commands.common import Devices, Texts, texts_or_stdin
from electra_flax.config.ranges import Range
from electra_flax.errors import UserError, check
from electra_flax.formats import counted
from electra_flax.runtime.console import console, print_json, print_line, print_rows, progress
from electra_flax.runtime.flags import File, Flag, Folder, Place

if TYPE_CHECKING:
    from electra_flax import Detected, Filled, Model, Scored

    Answer = TypeVar("Answer", Detected, Filled, Scored)


class Show(Devices):
    """Show what the discriminator detects, in colour.

    The generator replaces words of held-out examples; the discriminator has to find them. Prints a few examples word by
    word, and a table over all. Repeat --model and --data to compare models, each on shards of its own vocabulary.
    """

    example = "electra-flax show --model tiny-ko --data shards"

    model: Annotated[tuple[Folder, ...], Flag(action="append")]
    """an export, or tiny-ko; examples are shown for the first --model"""
    data: Annotated[tuple[Place, ...], Flag(action="append")]
    """shards with a validation split"""
    examples: Annotated[int, Range(1, 10_000), "N"] = 4
    """examples to show"""
    temperature: Annotated[float, Range(0, 10**6, "(]")] = 1.0
    """divides the generator's logits before it draws, as objective.temperature of a run does: above 1 it draws less
    likely words, which are easier to find"""

    def run(self) -> None:
        if len(self.model) != len(self.data):
            raise UserError(
                f"--model is given {counted(len(self.model), 'times')}, --data {counted(len(self.data), 'times')}: "
                "give --data once for each --model"
            )
        self.use_devices()
        from electra_flax.reports import replaced
        from electra_flax.storage.staging import stage

        tallies, names = {}, formats.labels([str(model) for model in self.model])
        for number, (model, data) in enumerate(zip(self.model, self.data, strict=True)):
            detections = replaced.detect(str(model), stage(data, without="train"), self.temperature)
            if number == 0:
                touched = [detection for detection in detections if detection.is_replaced.any()]
                replaced.show(touched[: self.examples], console())
            tallies[names[number]] = replaced.tally(detections)
        replaced.compare(tallies, console(), self.temperature)


class Verify(Devices):
    """Compare a model's outputs in every framework, layer by layer.

    Loads a model through every framework that is installed (Flax, PyTorch, TensorFlow) and prints the largest
    differences between its hidden states and logits and ours; with --against, also those of other weights. Exits with 1
    if a difference exceeds the tolerance.
    """

    example = "electra-flax verify --model models/ko --against orbax:runs/ko"

    model: Place
    """an export or one of its two folders, OWNER/NAME on the hub, or tiny-ko"""
    against: Annotated[Place | None, "SOURCE"] = None
    """weights that should be the same: DIR, hf:DISC[,GEN], tf1:PREFIX, orbax:DIR or tiny-ko"""
    tolerance: Annotated[float, Range(0, 10**6), "X"] = 1e-4
    """largest difference allowed"""
    json: bool = False
    """print JSON"""

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
            print("; ".join(f"{part} in {name}: exceeds the tolerance of {self.tolerance:g}" for part, name in beyond)
                  or f"all within the tolerance of {self.tolerance:g}")  # fmt: skip
        return 1 if beyond else 0


class Asking(Devices):
    """Sentences."""

    model: Place
    """an export or one of its two folders, OWNER/NAME on the hub, a workdir, tiny-ko, hf:, tf1: or orbax:SOURCE"""
    texts: Annotated[Texts, "SENTENCE"] = ()
    """default: lines of the standard input"""
    json: bool = False
    """print JSON"""

    together: ClassVar[int] = 256
    """Sentences that are answered between two looks at the bar."""

    def ask(self, answer: Callable[[Model, list[str]], list[Answer]]) -> list[Answer]:
        """Return what the model answers to each sentence; printed, if as JSON."""
        found = self.answers(texts_or_stdin(self.texts), answer)
        if self.json:
            print_json([asdict(each) for each in found])
        return found

    def answers(self, texts: list[str], answer: Callable[[Model, list[str]], list[Answer]]) -> list[Answer]:
        """Return what the model answers to each of these, with a bar where it takes long."""
        self.use_devices()
        from electra_flax.api.models import load

        model, found = load(self.model), []
        with progress(len(texts), "answering", "sentences", delay=5) as bar:
            for start in range(0, len(texts), self.together):
                some = texts[start : start + self.together]
                found += answer(model, some)
                bar.update(len(some))
        return found


class Detect(Asking):
    """Find words of a sentence that look replaced.

    Asks the discriminator for each piece of your sentences whether it was replaced. Suspicious pieces are coloured and
    followed by the probability; if there are none, the word with the highest one is named. --json prints all pieces and
    words with position and probability.
    """

    example = 'electra-flax detect --model tiny-ko "서울은 대한민국의 바나나이다."'

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
    """Fill in each [MASK] of a sentence.

    Prints the generator's most likely tokens for each [MASK] in your sentences, without special and unused ones.
    """

    example = 'electra-flax fill --model tiny-ko "서울은 [MASK]의 수도이다."'

    top: Annotated[int, Range(1, 10_000), "N"] = 5
    """tokens to show"""

    def run(self) -> None:
        answers = self.ask(lambda model, texts: model.fill(texts, self.top))
        for answer in () if self.json else answers:
            print_line(answer.text)
            for mask in answer.masks:
                print_line("  " + "  ".join(f"{each.token} {each.probability:.1%}" for each in mask))


class Score(Asking):
    """Score how likely a sentence is.

    Prints the pseudo-log-likelihood of your sentences: each token is masked in turn, and the generator's natural log
    probabilities are added up; then the mean per token, for comparing sentences of different lengths. An Electric model
    answers in one pass, up to a constant: with minus the energy of each token. With --nbest, ranks lists of candidates
    instead, as a speech recogniser or a translator gives them, by their own score + W x pseudo-log-likelihood; what is
    printed has the form of what was read, with the sum as the score, the best candidate of each list first.
    """

    example = """electra-flax score --model tiny-ko "서울은 대한민국의 수도이다."
electra-flax score --model tiny-ko --nbest nbest.tsv --weight 0.5"""
    together = 64  # a pass for each of their tokens

    nbest: File | None = None
    """lines of a list's name, a candidate and, if there is one, its score (higher is better), separated by tabs"""
    weight: Annotated[float | None, Range(0, 10**6, "(]"), "W"] = None
    """of the pseudo-log-likelihood beside a candidate's own score (default: 1)"""

    def run(self) -> None:
        if self.nbest is not None:
            self._rank(self.nbest)
            return
        check(self.weight is None, f"--weight {self.weight}: only with --nbest FILE")
        answers = self.ask(lambda model, texts: model.score(texts))
        for answer in () if self.json else answers:
            print_line(f"{answer.log_likelihood:.2f} ({answer.per_token:.2f} per token)  {answer.text}")
            print_line("  " + "  ".join(f"{piece.token} {piece.log_likelihood:.2f}" for piece in answer.pieces))

    def _rank(self, path: Path) -> None:
        from electra_flax.reports import nbest

        check(not self.texts, f"sentences and --nbest {path}: give one of them")
        candidates, have_scores = nbest.read_lists(path)
        check(
            self.weight is None or have_scores,
            f"--weight {self.weight}: has no effect: the candidates of {path} have no scores of their own",
        )
        texts = list(dict.fromkeys(candidate.text for candidate in candidates))
        scored = dict(zip(texts, self.answers(texts, lambda model, some: model.score(some)), strict=True))
        lists = nbest.rank(candidates, scored, 1.0 if self.weight is None else self.weight)
        if self.json:
            print_json([{"list": name, "ranked": [asdict(each) for each in found]} for name, found in lists.items()])
            return
        for name, found in lists.items():
            for each in found:
                print_rows(f"{name}\t{each.text}\t{each.total:.4f}")
