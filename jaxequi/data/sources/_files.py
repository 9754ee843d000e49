"""Reading whole files, with errors that name them."""

from __future__ import annotations

import io

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError


def read_file(path: epath.PathLike) -> bytes:
    """Read a whole file."""
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def load_array(path: epath.PathLike) -> np.ndarray:
    """Load a .npy file; pickled objects are refused, not run."""
    data = read_file(path)
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no plain .npy array: {error}") from error
