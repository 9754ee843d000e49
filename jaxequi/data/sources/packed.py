"""What `jaxequi.prepare.pack` writes: ArrayRecord shards with a manifest.

A record is one image: a `tf.train.Example` with `image` (encoded), `label` and, where the
source had one, `latent`. Record `row * num_views + view` is image `view` of example `row`, so
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
from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import is_regular, read_file
from jaxequi.errors import Refusal
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
            self._length = int(manifest["examples"])
            self.class_names: Sequence[str] = tuple(map(shown, manifest["class_names"]))
            shards = [(str(s["file"]), int(s["records"]), s["bytes"]) for s in manifest["shards"]]
            records = sum(count for _, count, _ in shards)
            outside = [name for name, _, _ in shards if "/" in name or name.startswith(".")]
            if (
                self.num_views < 1
                or self._length < 0
                or min((c for _, c, _ in shards), default=0) < 0
            ):
                raise Refusal(f"{self._length} examples of {self.num_views} images")
            if records != self._length * self.num_views or outside:
                raise Refusal(
                    f"{records} records are not {self._length} x {self.num_views} images, or a "
                    f"shard lies elsewhere: {outside}"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{manifest_file} is damaged: {error!r}") from error
        self._files = [self._folder / name for name, _, _ in shards]
        self._ends = np.cumsum([count for _, count, _ in shards])
        for file, (_, _, wanted) in zip(self._files, shards):
            size = file.stat().length if is_regular(file) else None
            if size != wanted:
                state = "is missing" if size is None else f"has {size} bytes, not {wanted}"
                raise DataError(f"the shard {shown(file)} {state}.")
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

    def _image(self, place: int) -> tuple[bytes, int, np.ndarray | None]:
        """Read a record: the encoded image, its label, and its latents f32[L] if there are any.

        ArrayRecord compares the checksums of what it reads itself: a flipped bit is an error.
        """
        shard = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        try:
            [data] = self._reader(shard).read([place - start])
            features = example.parse(data)
            label = example.integer(features, "label")
            if not -1 <= label < len(self.class_names):  # TFDS has -1 for "unlabelled"
                raise DataError(f"label {label} is not in -1 to {len(self.class_names) - 1}.")
            latent = features.get("latent")
            if isinstance(latent, list):
                raise DataError("the latents are bytes, not numbers.")
            return example.image(features, "image"), label, latent
        except Exception as error:  # array_record raises many types
            where = f"{shown(self._files[shard])}, record {place - start}"
            raise DataError(f"{where}: {shown(error)}") from error

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: of each the encoded images `views`, and their latents f32[V, L]."""
        return [self._read(int(row), mine) for row, mine in zip(rows, views)]

    def _read(self, row: int, views: np.ndarray) -> Record:
        parts = [self._image(row * self.num_views + int(view)) for view in views]
        images, labels, latents = zip(*parts)
        record: Record = {"image": list(images), "label": labels[0]}
        widths = {None if latent is None else len(latent) for latent in latents}
        if len(widths) > 1 or len(set(labels)) > 1:
            raise DataError(f"the images of example {row} of {self} differ in label or latents.")
        if latents[0] is not None:
            record["latent"] = np.stack(latents)
        return record


def make(folder: str) -> Packed:
    """Open a folder that `python -m jaxequi.prepare.pack` wrote.

    Raises:
      ValueError: no manifest, a damaged one, or a shard that is missing or cut.
    """
    return Packed(folder)
