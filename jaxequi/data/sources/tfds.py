"""Prepared TFDS data sets, without TensorFlow.

ArrayRecord and parquet directories go through TFDS's own data source, with the image left
encoded for our decoder; a directory of TFRecords goes through `tfrecord.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources import tfrecord
from jaxequi.data.sources._files import is_regular
from jaxequi.errors import Refusal
from jaxequi.types import Record, Source

INFO = "dataset_info.json"


class TFDS:
    """Examples of one split of a prepared TFDS data set."""

    num_views = 1

    def __init__(self, builder: Any, split: str, image: str, label: str):
        from tensorflow_datasets import decode

        try:
            self._data = builder.as_data_source(split, decoders={image: decode.SkipDecoding()})
        except Exception as error:  # a split that is none, files that are damaged or missing
            raise DataError(
                f"the split {split!r} of {builder.name} cannot be read: {shown(error)}. There is "
                f"{', '.join(builder.info.splits)}."
            ) from error
        self._image, self._label = image, label
        self._name = f"{builder.name}[{split}] in {builder.data_dir}"
        self.class_names: Sequence[str] = _class_names(builder, label)

    def __len__(self) -> int:
        return len(self._data)

    def __str__(self) -> str:
        return self._name

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the encoded image, once for each asked-for view, and its label."""
        try:
            found = self._data.__getitems__([int(row) for row in rows])
            return [
                {"image": [one[self._image]] * views.shape[1], "label": self._class(one)}
                for one in found
            ]
        except Exception as error:  # array_record and TFDS raise many types
            raise DataError(f"{self}, among records {list(rows)[:8]}: {shown(error)}") from error

    def _class(self, one: Mapping[str, Any]) -> int:
        label = int(one[self._label])
        if not -1 <= label < len(self.class_names):  # -1 is TFDS's "unlabelled"
            raise DataError(f"label {label} is not in -1 to {len(self.class_names) - 1}")
        return label


def _class_names(builder: Any, label: str) -> tuple[str, ...]:
    names = getattr(dict(builder.info.features).get(label), "names", None)
    if names is None:
        raise DataError(
            f"{builder.name} has no classes {label!r}; its features are "
            f"{', '.join(sorted(map(shown, builder.info.features)))}."
        )
    return tuple(map(shown, names))


def _version(place: epath.Path) -> list[int]:
    parts = place.name.split(".")
    return [int(part) for part in parts] if all(map(str.isdecimal, parts)) else []


def locate(name: str, data_dir: str = "") -> epath.Path:
    """Return the directory of a prepared data set, the newest version of it.

    Raises:
      DataError: there is none; the message is the command that prepares it.
    """
    base = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    base = base.expanduser()
    for root in (epath.Path(name).expanduser(), base / name):
        if is_regular(root / INFO):
            return root
        found = [info.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/{INFO}")]
        if found:
            return max(found, key=_version)
    raise DataError(
        f"the data set {name!r} is not in {base}. Prepare it with\n"
        f"  python -m jaxequi.prepare.tfds {name} --data-dir {base}\n"
        "or name another place with data_dir or TFDS_DATA_DIR."
    )


def make(
    dataset: str,
    split: str = "train",
    data_dir: str = "",
    image: str = "image",
    label: str = "label",
) -> Source:
    """Open a split of a prepared TFDS data set.

    Args:
      dataset: its name (`cifar10`), or its directory.
      split: in the words of TFDS: `train`, `train[:10%]`, `train+validation`.
      data_dir: where prepared data sets are; $TFDS_DATA_DIR or ~/tensorflow_datasets by default.
      image: name of the feature that is the image.
      label: name of the feature that is the class.

    Raises:
      ValueError: tensorflow-datasets is not installed, the data set is not there (the message is
        the command that prepares it), or it has no such split.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise Refusal(
            "the source tfds needs the package tensorflow-datasets: pip install 'jaxequi[tfds]'."
        ) from error
    place = locate(dataset, data_dir)
    for file in place.iterdir():
        if not file.is_dir() and not is_regular(file):
            raise DataError(f"{shown(file)} is no regular file; remove it.")
    try:
        builder = tfds.builder_from_directory(place)
    except Exception as error:  # whatever a damaged directory makes TFDS raise
        raise DataError(f"{place} is no prepared TFDS data set: {error}") from error
    if builder.info.file_format.value != "tfrecord":
        return TFDS(builder, split, image, label)
    if split not in builder.info.splits:
        raise DataError(
            f"{place} is stored as TFRecords, whose splits are {', '.join(builder.info.splits)}; "
            f"there is no {split!r}."
        )
    pattern = os.fspath(place / f"{builder.name}-{split}.tfrecord-*")
    return tfrecord.make(pattern, class_names=_class_names(builder, label), layout="tfds")
