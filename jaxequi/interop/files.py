"""Files of torch: the only place that imports it. Weights are read, code is not run."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            'files of torch need torch: pip install -e ".[torch]" (training never does)'
        ) from error
    return torch


def read_pth(file: str | pathlib.Path) -> dict[str, Any]:
    """Read a file of `torch.save`: nested dicts, with numpy arrays where it has tensors.

    Raises:
      ValueError: no such file, a damaged one, one that is no dict, or one that holds anything but
        tensors and plain values, which is to say code to be run.
    """
    torch, file = _torch(), pathlib.Path(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is refused: it holds more than tensors and plain values, and reading it would "
            f"run code ({str(error).split('. ')[-1].strip().splitlines()[0]}). Save the state dict "
            "alone, with torch.save(model.state_dict(), ...)."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} is no file of torch, or is cut off: {type(error).__name__} {str(error)[:80]}"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds a {type(loaded).__name__}, not a dict of tensors")
    return _to_numpy(loaded, torch)


def _to_numpy(value: Any, torch: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_numpy(v, torch) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_numpy(v, torch) for v in value]
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


def write_pth(file: str | pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Write nested dicts of numpy arrays as `torch.save` would their tensors; all or nothing.

    Raises:
      ValueError: the file cannot be written.
    """
    torch, file = _torch(), pathlib.Path(file)

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(v) for key, v in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors(tree), part)
        part.replace(file)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be written: {str(error).splitlines()[0]}") from error
