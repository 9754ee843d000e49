"""What `jaxequi.prepare.pack` writes: ArrayRecord shards with a manifest.

A record is one picture: a `tf.train.Example` with `image` (encoded), `label` and, where the
source had one, `latent`. Record `row * num_views + view` is picture `view` of example `row`, so
that a pair of views costs two reads of a file that is open already.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import numpy as np
from array_record.python import array_record_module
from etils import epath

from jaxequi.data import example
from jaxequi.data.errors import DataError
from jaxequi.data.sources._files import read_file
from jaxequi.types import Record

MANIFEST = "manifest.json"


class Packed:
    """Examples of packed shards."""

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder).expanduser()
        manifest_file = self._folder / MANIFEST
        if not manifest_file.exists():
            raise DataError(
                f"{manifest_file} is missing: the folder was not packed, or not to the end. Run "
                "python -m jaxequi.prepare.pack again; it goes on where it stopped."
            )
        try:
            manifest = json.loads(read_file(manifest_file))
            self.num_views = int(manifest["num_views"])
            self.class_names: Sequence[str] = tuple(manifest["class_names"])
            self._length = int(manifest["examples"])
            shards = manifest["shards"]
            self._files = [self._folder / shard["file"] for shard in shards]
            self._ends = np.cumsum([shard["records"] for shard in shards])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest_file} is damaged: {error!r}") from error
        for file, shard in zip(self._files, shards):
            size = file.stat().length if file.exists() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes, not {shard['bytes']}"
                raise DataError(f"the shard {file} {state}.")
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __str__(self) -> str:
        return f"{len(self)} packed examples in {self._folder}"

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(self._files[shard]), options="readahead_buffer_size:0"
                )
            return self._readers[shard]

    def _features(self, place: int) -> dict[str, example.Value]:
        shard = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        try:
            [data] = self._reader(shard).read([place - start])
            return example.parse(data)
        except Exception as error:  # array_record raises many types
            raise DataError(f"{self._files[shard]}, record {place - start}: {error}") from error

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: of each the encoded pictures `views`, and their latents f32[V, L]."""
        return [self._read(int(row), mine) for row, mine in zip(rows, views)]

    def _read(self, row: int, views: np.ndarray) -> Record:
        parts = [self._features(row * self.num_views + int(view)) for view in views]
        record: Record = {
            "image": [part["image"][0] for part in parts],
            "label": int(parts[0]["label"][0]),
        }
        if "latent" in parts[0]:
            record["latent"] = np.stack([np.asarray(part["latent"]) for part in parts])
        return record


def make(folder: str) -> Packed:
    """Open a folder that `python -m jaxequi.prepare.pack` wrote.

    Raises:
      ValueError: no manifest, a damaged one, or a shard that is missing or cut.
    """
    return Packed(folder)
