"""Run by an environment with TensorFlow: reads a checkpoint as the original does and writes its tensors.

usage: read_tf1_checkpoint.py PREFIX TENSORS.npz
"""

import json
import sys

import numpy as np
import tensorflow as tf

prefix, out = sys.argv[1:]
reader = tf.train.load_checkpoint(prefix)
tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
np.savez(out, **tensors)
print(json.dumps({"tensors": len(tensors), "latest": tf.train.latest_checkpoint(prefix.rpartition("/")[0])}))
