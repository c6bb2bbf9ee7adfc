"""Framing, codec, index, vocabulary: against files that the original wrote, protobuf's own code, and damage."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # tensorboardX needs it
from once import made_once
from run_tools import fill_with_shards

from electra_flax.data.decoder import decode_records, masked_crc
from electra_flax.data.example import FEATURES, decode_example, encode_example
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.tfrecord import Shard, ShardWriter, frame, index_path
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError


@pytest.mark.parametrize(("folder", "length"), [("seeded_L128_p1", 128), ("seeded_L512_p1", 512)])
def test_reads_what_the_original_wrote(golden, folder, length):
    data = DataFolder.open(golden / "tfrecords" / folder)
    decoded = np.load(golden / "tfrecords" / folder / "decoded.npz")
    assert data.manifest is None
    for path in data.splits["train"]:
        examples = ShardedExamples([path], length, 32200)
        rows = examples.read(range(len(examples)))
        for i, name in enumerate(("input_ids", "input_mask", "segment_ids")):
            np.testing.assert_array_equal(rows[:, i], decoded[f"{path.name}/{name}"])


# What tensorflow/core/example/{example,feature}.proto say of int64 lists.
EXAMPLE = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "Int64List"
  field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED options { packed: true } } }
message_type { name: "Feature"
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List" label: LABEL_OPTIONAL } }
message_type { name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features.FeatureEntry"
          label: LABEL_REPEATED }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.Feature" label: LABEL_OPTIONAL } } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" label: LABEL_OPTIONAL } }
"""


@pytest.fixture(scope="module")
def example_class():
    """tf.train.Example, made by protobuf."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(EXAMPLE, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def plain_masked_crc(data: bytes) -> int:
    """CRC-32C bit by bit, masked as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def plain_records(path: Path):
    """The records of a TFRecord file."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == plain_masked_crc(data[:8])
        payload, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == plain_masked_crc(payload)
        data = data[4:]
        yield payload


def test_shards_are_what_protobuf_reads(sample_corpus, example_class):
    folder = made_once("shards", lambda root: fill_with_shards(root, sample_corpus)) / "shards"
    (path,) = DataFolder.open(folder).splits["validation"]
    examples = ShardedExamples([path], 32, 600)
    payloads = list(plain_records(path))
    assert len(payloads) == len(examples) > 10
    for payload, rows in zip(payloads, examples.read(range(len(examples))), strict=True):
        features = example_class.FromString(payload).features.feature
        assert set(features) == set(FEATURES)
        np.testing.assert_array_equal(rows, [features[name].int64_list.value for name in FEATURES])


def test_what_protobuf_writes_is_read(example_class):
    rows = np.random.default_rng(0).integers(0, 2**20, (3, 32))
    for names in (FEATURES, FEATURES[::-1]):  # a map has no order
        example = example_class()
        for name in names:
            example.features.feature[name].int64_list.value.extend(rows[FEATURES.index(name)])
        np.testing.assert_array_equal(decode_example(example.SerializeToString(), 32, "here"), rows)


def test_shards_of_the_original_are_found_in_numeric_order(tmp_path):
    for number in (10, 2, 0, 1):
        writer = ShardWriter(tmp_path / f"pretrain_data.tfrecord-{number}-of-1000")
        writer.write(frame(encode_example([number] * 8, 8, 8)))
        writer.close()
    data = DataFolder.open(tmp_path)
    assert data.manifest is None
    assert [path.name.split("-")[1] for path in data.splits["train"]] == ["0", "1", "2", "10"]
    assert ShardedExamples(data.splits["train"], 8, 100).read(range(4))[:, 0, 0].tolist() == [0, 1, 2, 10]


def test_codec_round_trip_of_every_varint_size():
    ids = [0, 1, 127, 128, 16383, 16384, 2_097_151, 2_097_152]
    rows = decode_example(encode_example(ids, 3, 10), 10, "here")
    np.testing.assert_array_equal(rows, [[*ids, 0, 0], [1] * 8 + [0] * 2, [0] * 3 + [1] * 5 + [0] * 2])
    with pytest.raises(UserError, match="here: not a tf.train.Example"):
        decode_example(b"\xff", 10, "here")
    with pytest.raises(UserError, match="input_ids holds 2147483648, expected a token id"):
        decode_example(encode_example([1 << 31], 1, 10), 10, "here")


def make_shard(folder, num_records=5):
    path = folder / "electra-train.tfrecord-00000-of-00001"
    writer = ShardWriter(path)
    for number in range(num_records):
        writer.write(frame(encode_example([number] * 8, 8, 8)))
    writer.close()
    return path


def test_random_access_with_and_without_index(tmp_path):
    path = make_shard(tmp_path)
    with_index = [Shard(path)[i] for i in (3, 0, 4)]
    index_path(path).unlink()
    assert [Shard(path)[i] for i in (3, 0, 4)] == with_index
    assert decode_example(with_index[0], 8, "")[0, 0] == 3


@pytest.mark.parametrize("keep_index", [True, False])
def test_truncated_shard_is_refused(tmp_path, keep_index):
    path = make_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    if not keep_index:
        index_path(path).unlink()
    with pytest.raises(UserError, match="truncated"):
        len(Shard(path))


def test_every_flipped_byte_is_noticed(tmp_path):
    path = make_shard(tmp_path, num_records=2)
    sound = path.read_bytes()
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            shard = Shard(path)
            for number in range(len(shard)):
                shard[number]


def test_length_and_vocabulary_are_checked_on_reading(tmp_path):
    path = make_shard(tmp_path)
    with pytest.raises(UserError, match="has 8 values, but data.max_seq_length=16"):
        ShardedExamples([path], 16, 100).read([0])
    with pytest.raises(UserError, match="token id 4, but model.vocab_size=4"):
        ShardedExamples([path], 8, 4).read([4])


def test_vocabulary_without_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nword\n")
    with pytest.raises(UserError, match=r"lacks \[SEP\], \[MASK\]"):
        _ = Vocabulary.read(tmp_path / "vocab.txt").special


def test_the_compiled_decoder_is_the_plain_one():
    rng = np.random.default_rng(0)
    rows, records = [], []
    for length in (0, 1, 7, 8, 9, 31, 32):
        ids = [1, *rng.choice([2, 127, 128, 16383, 16384, 2**20], length)][:32]
        records.append(frame(encode_example(ids, min(3, len(ids)), 32)))
        rows.append(decode_example(records[-1][12:-4], 32, "here"))
    data, ends = np.frombuffer(b"".join(records), np.uint8), np.cumsum([len(record) for record in records])
    found = np.zeros((len(records), 3, 32), np.int32)
    assert decode_records(data, ends, found) == -1
    np.testing.assert_array_equal(found, np.stack(rows))
    for record in (0, 4):
        start = ends[record - 1] if record else 0
        for byte in range(start, ends[record]):  # every byte is under a CRC
            damaged = data.copy()
            damaged[byte] ^= 1 << rng.integers(8)
            assert decode_records(damaged, ends, found) == record
    assert decode_records(data, ends, np.zeros((len(records), 3, 31), np.int32)) == 0
    assert decode_records(data, ends, np.zeros((len(records), 3, 33), np.int32)) == 0


def test_the_compiled_crc_is_that_of_the_library():
    data = np.random.default_rng(1).integers(0, 256, 100, np.uint8)
    for start in range(0, 20):
        for end in range(start, 100, 7):
            crc = google_crc32c.value(data[start:end].tobytes())
            assert masked_crc(data, start, end) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
