"""Files of torch, which nothing else imports, and safetensors. Weights are read, code is not run.

What is written is there whole or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import pathlib
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxequi.errors import Refusal

SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32"}
DEEPEST = 20  # dicts in dicts; an optimizer's state has five


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise Refusal(
            'files of torch need torch: pip install -e ".[torch]" (training never does)'
        ) from error
    return torch


def read_pth(file: str | pathlib.Path) -> dict[str, Any]:
    """Read a file of `torch.save`: nested dicts, with numpy arrays where it has tensors.

    Raises:
      ValueError: no such file, no regular file, a damaged one, one that is no dict, one that claims
        more than it holds, or one that holds anything but tensors and plain values, which is to say
        code to be run.
    """
    torch, file = _torch(), pathlib.Path(file)
    size = _size(file)
    # trainings save what the command line said beside the weights: a bag of plain values
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise Refusal(
            f"{file} is refused: it holds more than tensors and plain values, and reading it would "
            f"run code ({_first_line(str(error).split('. ')[-1])}). Save the state dict "
            "alone, with torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # a damaged pickle makes torch raise nearly any type
        raise Refusal(
            f"{file} is no file of torch, or is cut off: {type(error).__name__} "
            f"{_first_line(str(error))}"
        ) from error
    if not isinstance(loaded, dict):
        raise Refusal(f"{file} holds a {type(loaded).__name__}, not a dict of tensors")
    try:
        return _Reader(torch, size).convert(loaded, 0)
    except ValueError as error:
        raise Refusal(f"{file} is refused: {error}") from error
    except Exception as error:  # kinds of tensors that numpy does not have, which raise many types
        raise Refusal(
            f"{file} holds a tensor that is no plain array: {_first_line(str(error))}"
        ) from error


def _first_line(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")[:160]
    return line if line.isprintable() else repr(line)


def _size(file: pathlib.Path) -> int:
    """Bytes of a regular file whose zip, if it is one, claims no more than there are."""
    try:
        if file.exists() and not file.is_file():
            raise Refusal(f"{file} is no regular file; give a file of torch.save")
        size = file.stat().st_size
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                claimed = sum(member.file_size for member in archive.infolist())
            if claimed > size:
                raise Refusal(
                    f"{file} is refused: it has {size:,} bytes and claims {claimed:,}; torch.save "
                    "compresses nothing"
                )
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Refusal(f"{file} is no file of torch, or is cut off: {error}") from error
    return size


class _Reader:
    """Turns tensors into arrays; containers that are held twice are converted once."""

    def __init__(self, torch: Any, size: int):
        self._torch, self._size = torch, size
        self._done: dict[int, Any] = {}

    def convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, self._torch.Tensor):
            return self._array(value.detach())
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth > DEEPEST:
            raise Refusal(f"over {DEEPEST} dicts or lists lie in each other")
        if id(value) not in self._done:
            if isinstance(value, Mapping):
                new: Any = {key: self.convert(v, depth + 1) for key, v in value.items()}
            else:
                new = [self.convert(v, depth + 1) for v in value]
            self._done[id(value)] = new
        return self._done[id(value)]

    def _array(self, tensor: Any) -> np.ndarray:
        if tensor.layout == self._torch.strided and tensor.nbytes > self._size:
            raise Refusal(
                f"a tensor of {list(tensor.shape)} claims {tensor.nbytes:,} bytes of "
                f"{self._size:,} in the file"
            )
        return (tensor.float() if tensor.dtype == self._torch.bfloat16 else tensor).numpy()


def write_pth(file: str | pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Write nested dicts of numpy arrays as `torch.save` would their tensors; all or nothing.

    Raises:
      ValueError: the file cannot be written.
    """
    torch = _torch()

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(v) for key, v in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    with appearing(file) as part:
        torch.save(tensors(tree), part)


def write_safetensors(
    file: str | pathlib.Path, state: Mapping[str, np.ndarray], about: Mapping[str, str]
) -> None:
    """Write arrays of numbers as safetensors does; all or nothing.

    The length of a JSON header in eight bytes, the header (type, shape, place of each array), and
    the arrays one behind the other, little-endian.

    Args:
      file: to be written.
      state: arrays by name.
      about: the header's `__metadata__`.

    Raises:
      ValueError: an array of another type than `SAFETENSORS` has, or the file cannot be written.
    """
    kinds = {kind: name for name, kind in SAFETENSORS.items()}
    header: dict[str, Any] = {"__metadata__": dict(about)}
    arrays, start = [], 0
    for name, array in state.items():
        if array.dtype.name not in kinds:
            raise Refusal(f"{name} is of {array.dtype}; safetensors here holds {', '.join(kinds)}")
        stop = start + array.nbytes
        kind, shape = kinds[array.dtype.name], list(array.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}
        arrays.append(array)
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with appearing(file) as part, part.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            out.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def read_safetensors(file: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `write_safetensors` writes: the arrays, and what is said about them.

    Raises:
      ValueError: no such file, one that is cut off or claims other arrays than it holds.
    """
    file = pathlib.Path(file)
    size = _size(file)
    content = file.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in {size}")
        header = json.loads(content[8 : 8 + length])
        about = header.pop("__metadata__", {})
        state = {}
        for name, one in header.items():
            (start, stop), kind = one["data_offsets"], np.dtype(SAFETENSORS[one["dtype"]])
            count = math.prod(one["shape"])
            if not 0 <= start <= stop <= size - 8 - length or stop - start != count * kind.itemsize:
                raise ValueError(f"{name} claims bytes {start} to {stop}")
            flat = np.frombuffer(content, kind.newbyteorder("<"), count, 8 + length + start)
            state[name] = flat.astype(kind).reshape(one["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{file} is no file of safetensors, or is cut off: {error}") from error
    return state, about


EPOCHS = ("epoch", "start_epoch")  # what trainings call it


def state_dict(loaded: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """Find the state dict in a file: whole, or under "model" or "state_dict".

    Returns:
      It without the prefix "module." or "model." that all its names have, as wrappers of a network
      leave it; after it that of a `classifier` which was trained beside the model, under
      "classifier."; and the epoch that the file names (0 if none).

    Raises:
      ValueError: something else than arrays under names.
    """
    nested = [loaded[name] for name in ("model", "state_dict") if name in loaded]
    state = nested[0] if nested and isinstance(nested[0], Mapping) else loaded
    odd = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, np.ndarray))]
    if odd or not state:
        raise Refusal(f"the file has no state dict; it has {', '.join(map(str, loaded))}")
    state, beside = _bare(state), loaded.get("classifier")
    if isinstance(beside, Mapping) and all(isinstance(v, np.ndarray) for v in beside.values()):
        state |= {f"classifier.{name}": array for name, array in _bare(beside).items()}
    epoch = next((loaded[name] for name in EPOCHS if name in loaded), None)
    return state, epoch if isinstance(epoch, int) else 0


def _bare(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take off the prefix of a wrapper, where all names have it."""
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): array for name, array in state.items()}
    return dict(state)


@contextlib.contextmanager
def appearing(target: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a path to write at, which becomes `target` in the end, or leaves nothing.

    What is missing of the folders above appears with it: the topmost name that is not there yet is
    written beside, with the ending ".part", and renamed.

    Raises:
      ValueError: it cannot be written.
    """
    target = pathlib.Path(target).absolute()
    top = target
    while not top.parent.exists():
        top = top.parent
    part = top.with_name(top.name + ".part")
    inside = part / target.relative_to(top)
    try:
        _remove(part)  # of a process that was killed
        inside.parent.mkdir(parents=True, exist_ok=True)
        yield inside
        part.replace(top)
    except OSError as error:
        raise Refusal(f"{target} cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:  # of torch
        raise Refusal(f"{target} cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        _remove(part)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
