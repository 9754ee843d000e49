"""The `tf.train.Example` message, read and written without protobuf.

The message nests as Example {1: Features {1: map entry {1: name, 2: Feature {1: BytesList |
2: FloatList | 3: Int64List {1: values}}}}}. Values come out as a list of bytes, f32[n] or i64[n].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxequi.data.errors import DataError

Value = list[bytes] | np.ndarray
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of 64 bits at most; return it and the place behind it."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = 0, 0
    while byte >= 128:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        byte = data[at]
        if shift > 63:
            raise DataError(f"no Example message: a number of over 64 bits at byte {at}")
    return (value | byte << shift) & (1 << 64) - 1, at + 1


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk over a message: (field, wire type, start, end) of each value."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == DELIMITED:
            size, at = _varint(data, at)
            stop = at + size
        elif kind == VARINT:
            _, stop = _varint(data, at)
        elif kind == FIXED32:
            stop = at + 4
        elif kind == FIXED64:
            stop = at + 8
        else:
            raise DataError(f"no Example message: wire type {kind} at byte {at}")
        if stop > end:
            raise DataError(f"no Example message: a field ends {stop - end} bytes too late")
        yield tag >> 3, kind, at, stop
        at = stop


def _integers(data: bytes, start: int, end: int) -> np.ndarray:
    values = []
    for _, kind, at, stop in _fields(data, start, end):
        while at < stop:
            value, at = _varint(data, at)
            if at > stop:
                raise DataError(f"no Example message: a number ends {at - stop} bytes too late")
            values.append(value - (1 << 64) if value >> 63 else value)
            if kind != DELIMITED:
                break
    return np.asarray(values, np.int64)


def _value(data: bytes, start: int, end: int) -> Value:
    for kind, _, at, stop in _fields(data, start, end):
        if kind == 1:
            return [data[a:b] for _, _, a, b in _fields(data, at, stop)]
        if kind == 2:
            packed = b"".join(data[a:b] for _, _, a, b in _fields(data, at, stop))
            if len(packed) % 4:
                raise DataError(f"no Example message: {len(packed)} bytes of floats of 4 bytes")
            return np.frombuffer(packed, "<f4").copy()
        if kind == 3:
            return _integers(data, at, stop)
    return []


def parse(data: bytes, wanted: Sequence[str] = ()) -> dict[str, Value]:
    """Read the features of an Example, or only those `wanted`.

    Raises:
      DataError: the bytes are no Example.
    """
    features: dict[str, Value] = {}
    try:
        for _, _, at, stop in _fields(data, 0, len(data)):
            for _, _, start, end in _fields(data, at, stop):
                name, place = "", None
                for field, _, a, b in _fields(data, start, end):
                    if field == 1:
                        name = data[a:b].decode()
                    else:
                        place = (a, b)
                if place and (not wanted or name in wanted):
                    features[name] = _value(data, *place)
    except (IndexError, UnicodeDecodeError) as error:
        raise DataError(f"no Example message: {error}") from error
    return features


def image(features: Mapping[str, Value], name: str) -> bytes:
    """Return the one string of bytes that a feature is to be; `DataError` if it is not."""
    value = features.get(name, [])
    if not isinstance(value, list) or len(value) != 1:
        raise DataError(f"{name} has {_count(value)}, not one string of bytes.")
    return value[0]


def integer(features: Mapping[str, Value], name: str) -> int:
    """Return the one integer that a feature is to be; `DataError` if it is not."""
    value = features.get(name, [])
    if isinstance(value, list) or value.dtype != np.int64 or len(value) != 1:
        raise DataError(f"{name} has {_count(value)}, not one integer.")
    return int(value[0])


def _count(value: Value) -> str:
    return f"{len(value)} values of {'bytes' if isinstance(value, list) else value.dtype}"


def _number(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(field: int, payload: bytes) -> bytes:
    return _number(field << 3 | DELIMITED) + _number(len(payload)) + payload


def build(features: Mapping[str, bytes | Sequence[bytes] | np.ndarray | int]) -> bytes:
    """Write an Example of bytes, integers (or their arrays) and float arrays."""
    entries = []
    for name in sorted(features):
        value = features[name]
        if isinstance(value, bytes):
            value = [value]
        elif isinstance(value, int):
            value = np.asarray([value])
        if not isinstance(value, np.ndarray):
            feature = _field(1, b"".join(_field(1, one) for one in value))
        elif value.dtype.kind == "f":
            packed = struct.pack(f"<{value.size}f", *value.ravel().tolist())
            feature = _field(2, _field(1, packed))
        else:
            feature = _field(3, _field(1, b"".join(map(_number, value.ravel().tolist()))))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))
