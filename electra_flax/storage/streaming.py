"""Shards that stay in the bucket: read a record at a time through TensorStore, which repeats what fails in passing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_flax.errors import UserError, reason


def pointer_path(shard: Path) -> Path:
    """The file beside a shard that says where its bytes are: the shard itself is then an empty stand-in of its size."""
    return shard.with_name(shard.name + ".url")


class RemoteBytes:
    """The bytes of an object; a slice of them is a request."""

    def __init__(self, url: str, size: int) -> None:
        import tensorstore

        folder, _, self._name = url.rpartition("/")
        self.url, self._size = url, size
        self._store: Any = tensorstore.KvStore.open(f"{folder}/").result()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Raises UserError where the bucket does not answer."""
        try:
            return self._store.read(self._name, byte_range=part).result().value
        except ValueError as error:
            raise UserError(f"{self.url}: cannot be read ({reason(error)})") from None
