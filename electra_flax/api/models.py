"""load: a model that answers about sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from electra_flax.errors import check

if TYPE_CHECKING:
    import numpy as np

    from electra_flax.reports.scoring import Scored
    from electra_flax.reports.sentences import Detected, Filled, Part, Pooling
    from electra_flax.trees import Params


def load(place: str | Path) -> Model:
    """Return the model at a place; its weights are read when it is first asked.

    `place` is "tiny-ko", which ships with the package (a folder of that name comes first), a folder of electra-flax
    export, a model's own folder, OWNER/NAME on the hub, the workdir of a run, local or on gs://, or a source as
    export --from has it: hf:DISC[,GEN], tf1:PREFIX, orbax:DIR. Raises UserError where there is no model.
    """
    return Model(str(place))


class Model:
    """A discriminator and its generator, or one of them, on all devices of this process.

    Sentences of like length go through together, in few shapes, each of which is compiled once: one list of many is
    much faster than many lists of one. Each method raises UserError for a text without words and for one that is longer
    than the model's positions.
    """

    def __init__(self, place: str) -> None:
        """Find the model, as `load` does."""
        from electra_flax.runtime.processes import use_cpu_where_there_is_nothing_else
        from electra_flax.weights.sources import find_weights, located_part

        use_cpu_where_there_is_nothing_else()
        self._place = place
        self._parts: dict[tuple[str, bool], Part] = {}
        self._params: dict[str, Params] = {}
        self._logit = find_weights(located_part(place, "discriminator"), needs_head=False).architecture.logit

    def __repr__(self) -> str:
        return f"electra_flax.load({self._place!r})"

    def detect(self, texts: Sequence[str]) -> list[Detected]:
        """Return for each sentence how likely each of its tokens and words was put in by a generator.

        Asks the discriminator. Raises UserError for one of Electric's, which says how likely a token is instead.
        """
        from electra_flax.reports import sentences

        check(
            self._logit == "replaced",
            f"{self._place}: an Electric model, whose logits are energies, not probabilities of having been replaced: "
            "ask it to score",
        )
        return sentences.detect(self._part("discriminator"), texts)

    def fill(self, texts: Sequence[str], top: int = 5) -> list[Filled]:
        """Return for each sentence and each [MASK] in it the `top` likeliest tokens. Asks the generator."""
        from electra_flax.reports import sentences

        return sentences.fill(self._part("generator"), texts, top)

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """Return each sentence's pseudo-log-likelihood, in nats: the sum of its tokens', each masked in turn.

        Asks the generator, once for each token, many in a batch; of an Electric model the discriminator, once for all,
        whose sums lack a constant for each token. Sums of sentences of unlike length compare badly: the longer one has
        more to pay for.
        """
        from electra_flax.reports import scoring

        if self._logit == "energy":
            return scoring.score_by_energies(self._part("discriminator"), texts)
        return scoring.score(self._part("generator"), texts)

    def embed(self, texts: Sequence[str], pooling: Pooling = "mean") -> np.ndarray:
        """Return a vector for each sentence, float32 [sentences, hidden size]: the discriminator's last states.

        "mean" is that of its tokens, without [CLS], [SEP] and padding; "cls" is the state of [CLS]. An encoder alone,
        as fine-tuning leaves it, will do.
        """
        from electra_flax.reports import sentences

        return sentences.embed(self._part("discriminator", needs_head=False), texts, pooling)

    def _part(self, name: str, needs_head: bool = True) -> Part:
        from electra_flax.reports.sentences import Part
        from electra_flax.weights.sources import find_part

        key = name, needs_head
        if key not in self._parts:
            weights = find_part(self._place, name, needs_head=needs_head)
            if weights.source not in self._params:  # both parts of a run are one source
                self._params[weights.source] = weights.to_params()
                weights.forget()
            self._parts[key] = Part(self._place, name, weights, self._params[weights.source])
        return self._parts[key]
