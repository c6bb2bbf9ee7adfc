"""Rows with a column of text -> documents: Parquet, data sets of tensorflow-datasets."""

from collections.abc import Iterator
from typing import Any

from data_prep.reading import Document, Input, as_document, split_lines, texts_as_documents
from electra_flax.errors import UserError


def read_parquet(given: Input) -> Iterator[Document]:
    """Yield the documents in a column of text, row group by row group."""
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise UserError(f"{given.path}: Parquet needs pyarrow: pip install 'electra-flax[corpora]'") from None
    key = given.options.text_key

    def rows() -> Iterator[tuple[str, Any]]:
        table = parquet.ParquetFile(given.file, buffer_size=1 << 20, pre_buffer=False)
        if key not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise UserError(f"{given.path}: no column {key!r} there, only {names}: give --text-key NAME")
        batches = table.iter_batches(batch_size=256, columns=[key])
        texts = (text for batch in batches for text in batch.column(0).to_pylist())
        for number, text in enumerate(texts, start=1):
            yield f"{given.path} row {number}", {key: text}

    try:
        yield from texts_as_documents(rows(), given)
    except (ArrowException, ValueError, OverflowError) as error:  # of values that Python cannot hold, too
        if isinstance(error, UserError):
            raise
        raise UserError(f"{given.path}: not a readable Parquet file: {error}; copy the file again") from None


def read_tfds(path: str) -> Iterator[Document]:
    """Yield tfds:NAME[:split][:feature], as tensorflow-datasets names them, or the folder of a prepared data set."""
    name, split, feature = [*path.removeprefix("tfds:").split(":"), "", ""][:3]
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise UserError(f"{path}: needs tensorflow-datasets: pip install 'electra-flax[tfds]'") from None
    try:
        builder = tfds.builder_from_directory(name) if "/" in name and name[0] in "./" else tfds.builder(name)
        builder.download_and_prepare()
        data = builder.as_dataset(split=split or "train", shuffle_files=False)
    except Exception as error:  # a registry, the network and a disk are behind these calls
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: cannot be opened: {reason}; expected tfds:NAME[:split][:feature]") from None
    feature = feature or "text"
    if feature not in builder.info.features:
        raise UserError(f"{path}: no feature {feature!r}, only {', '.join(builder.info.features)}")
    for row in tfds.as_numpy(data):
        yield as_document(split_lines(row[feature].decode()))
