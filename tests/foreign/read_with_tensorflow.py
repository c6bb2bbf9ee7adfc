"""Run by an environment with TensorFlow and tensorflow-datasets: reads our shards with both, prints what it read.

usage: read_with_tensorflow.py SHARDS_FOLDER LENGTH
"""

import glob
import json
import sys
import zlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

folder, length = sys.argv[1], int(sys.argv[2])
names = ("input_ids", "input_mask", "segment_ids")


def digest(rows):
    """Of the rows in file order, int64 [n, 3, length]."""
    return {"rows": len(rows), "crc": zlib.crc32(np.asarray(rows, np.int64).tobytes())}


spec = {name: tf.io.FixedLenFeature([length], tf.int64) for name in names}
files = [path for path in sorted(glob.glob(f"{folder}/electra-train.tfrecord-*")) if not path.endswith(".index")]
parsed = [tf.io.parse_single_example(record, spec) for record in tf.data.TFRecordDataset(files)]
builder = tfds.builder_from_directory(folder)
opened = builder.as_dataset(split="train", shuffle_files=False, read_config=tfds.ReadConfig(interleave_cycle_length=1))
print(
    json.dumps(
        {
            "tf": digest([[row[name].numpy() for name in names] for row in parsed]),
            "tfds": digest([[row[name].numpy() for name in names] for row in opened]),
            "tfds_examples": {split: info.num_examples for split, info in builder.info.splits.items()},
        }
    )
)
