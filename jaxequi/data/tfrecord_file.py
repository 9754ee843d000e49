"""The framing of TFRecord files: u64 length, u32 CRC of it, the data, u32 CRC of the data."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from etils import epath

from jaxequi.data.crc32c import masked, masked_rows
from jaxequi.data.errors import DataError

LENGTH = struct.Struct("<Q")
HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
MAX_RECORD = 1 << 30  # bytes; an image is never as large


def _check_headers(path: epath.Path, headers: list[bytes], places: list[tuple[int, int]]) -> None:
    """Raise an error for the first header whose CRC is wrong; all at once, as one is slow."""
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, HEADER.size)
    stored = np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0]
    wrong = np.flatnonzero(masked_rows(rows[:, :8]) != stored)
    if len(wrong):
        at = places[wrong[0]][0] - HEADER.size
        raise DataError(f"{path}: bad CRC in the header of record {wrong[0]}, byte {at}")


def scan(path: epath.PathLike) -> np.ndarray:
    """Return (offset, length) of the data of every record, i64[n, 2], by seeking from head to head.

    Raises:
      DataError: a header whose CRC is wrong, or a file that ends inside a record; both name it.
    """
    path = epath.Path(path)
    size = path.stat().length
    places: list[tuple[int, int]] = []
    headers: list[bytes] = []
    at = 0
    # Unbuffered, as a buffer would read a page for each twelve bytes.
    local = "://" not in os.fspath(path)
    with open(path, "rb", buffering=0) if local else path.open("rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                _check_headers(path, headers, places)
                raise DataError(f"{path}: the file ends in the header of record {len(places)}")
            length = HEADER.unpack(header)[0]
            places.append((at + HEADER.size, length))
            headers.append(header)
            at += HEADER.size + length + FOOTER.size
    _check_headers(path, headers, places)
    if at > size:
        start, length = places[-1]
        raise DataError(
            f"{path}: record {len(places) - 1} at byte {start - HEADER.size} is cut off: "
            f"{at - size} bytes of its {length} are missing"
        )
    return np.asarray(places, np.int64).reshape(-1, 2)


def read(file: BinaryIO, offset: int, length: int, check: bool) -> bytes:
    """Read the data of a record, and check its frame and its CRC if told so.

    Raises:
      DataError: a short read, over 1 GiB, a header of another length, or a wrong CRC.
    """
    if length > MAX_RECORD:
        raise DataError(f"the record at byte {offset} claims {length} bytes")
    file.seek(offset - HEADER.size)
    data = file.read(HEADER.size + length + FOOTER.size)
    if len(data) != HEADER.size + length + FOOTER.size:
        raise DataError(f"the file ends inside the record at byte {offset}")
    payload = data[HEADER.size : -FOOTER.size]
    if check:
        stored, crc = HEADER.unpack_from(data)
        if stored != length or masked(data[: LENGTH.size]) != crc:
            raise DataError(f"no record of {length} bytes begins at byte {offset}")
        if masked(payload) != FOOTER.unpack_from(data, HEADER.size + length)[0]:
            raise DataError(f"bad CRC of the {length} bytes at byte {offset}")
    return payload


def is_header(file: BinaryIO, offset: int, length: int) -> bool:
    """Whether a header before byte `offset` announces so many bytes."""
    file.seek(offset - HEADER.size)
    head = LENGTH.pack(length)
    return file.read(HEADER.size) == head + FOOTER.pack(masked(head))


def write(path: epath.PathLike, records: Iterable[bytes]) -> None:
    """Write records to a new file."""
    with epath.Path(path).open("wb") as file:
        for data in records:
            head = LENGTH.pack(len(data))
            file.write(head + FOOTER.pack(masked(head)) + data + FOOTER.pack(masked(data)))
