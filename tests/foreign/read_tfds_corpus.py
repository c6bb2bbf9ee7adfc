"""Run by an environment with TensorFlow and tensorflow-datasets: reads a prepared data set as a corpus.

usage: read_tfds_corpus.py FOLDER
"""

import json
import sys

import tensorflow_datasets as tfds

from data_prep.readers import Corpus
from data_prep.sources import find_sources
from electra_flax.errors import UserError

folder = sys.argv[1]
texts = ["첫 문서의 첫 줄.\n둘째 줄.", "둘째 문서."]
builder = tfds.dataset_builders.store_as_tfds_dataset(
    name="letters",
    version="1.0.0",
    features=tfds.features.FeaturesDict({"title": tfds.features.Text(), "body": tfds.features.Text()}),
    split_datasets={
        "train": [(number, {"title": "a", "body": text}) for number, text in enumerate(texts)],
        "test": [(0, {"title": "b", "body": "시험 문서."})],
    },
    data_dir=folder,
)


def read(source):
    try:
        return [document.lines() for document in Corpus(find_sources([source])).documents()]
    except UserError as error:
        return str(error)


path = f"tfds:{folder}/letters/1.0.0"
print(json.dumps({
    "train": read(f"{path}:train:body"), "test": read(f"{path}:test:body"),
    "feature": read(path), "split": read(f"{path}:none:body"), "name": read("tfds:/nowhere/1.0.0"),
}, ensure_ascii=False))  # fmt: skip
