"""One cleaned document -> its records: a pure function of the document and the job, whoever calls it and in what order.

That is why worker processes and Apache Beam make the same examples.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from data_prep.clean import CleaningOptions
from data_prep.encode import Encoder
from data_prep.examples import BuilderName, ExampleBuilder
from electra_flax.data.tfrecord import frame
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class ShardJob:
    """What decides the shards' bytes."""

    vocab_dir: Path
    casing: Casing
    builder: BuilderName
    max_seq_length: int
    validation_fraction: float
    seed: int
    validation_unit: Literal["document", "example"] = "document"
    """What is held out whole. A text of a few documents, or of one, can only lend examples."""
    cleaning: CleaningOptions = CleaningOptions()
    num_shards: int | None = None
    """Training shards; None: chosen by the size of the text."""
    num_hosts: int = 1
    """The number of training shards is a multiple of it."""

    def __post_init__(self) -> None:
        """Raise UserError for shards that the hosts cannot share evenly."""
        if self.num_shards and self.num_shards % self.num_hosts:
            above = -(-self.num_shards // self.num_hosts) * self.num_hosts
            raise UserError(
                f"--num-shards {self.num_shards}: no multiple of --hosts {self.num_hosts}, which could not share them "
                f"evenly: give {above}, or leave --num-shards out"
            )


class Made(NamedTuple):
    """What became of a document."""

    records: list[tuple[str, bytes, int]]
    """Split, framed example, and its number of tokens."""
    pieces: int
    unknown: int
    discarded: int
    """Pieces that are in no example."""


class RecordMaker:
    """Tokenizes documents and cuts them into examples."""

    def __init__(self, job: ShardJob, vocabulary: Vocabulary) -> None:
        self._job = job
        self._encoder = Encoder(vocabulary.tokens, job.casing)
        self._unknown = vocabulary.special.unk
        self._builder = ExampleBuilder(job.builder, job.max_seq_length, vocabulary.special, random.Random(0))

    def make(self, document: list[str]) -> Made:
        """Return the records of a document of sentences.

        Split and randomness are decided by the text itself: copies of what is held out never lie on both sides, and
        nothing depends on the documents around.
        """
        job, builder = self._job, self._builder
        digest = self._digest("\n".join(document).encode())
        builder.begin(random.Random(int.from_bytes(digest, "big")))
        sentences = self._encoder.encode(document)
        records = []
        for example in builder.add_document(sentences):
            record = frame(example.encode(job.max_seq_length))
            unit = digest if job.validation_unit == "document" else self._digest(record)
            is_validation = int.from_bytes(unit[:8], "big") < job.validation_fraction * 2**64
            records.append((SPLITS[is_validation], record, len(example.token_ids)))
        return Made(
            records,
            sum(map(len, sentences)),
            sum(sentence.count(self._unknown) for sentence in sentences),
            builder.num_discarded,
        )

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, digest_size=16, key=str(self._job.seed).encode()).digest()
