"""Host batches by step: a batch is a function of (seed, step), whatever reads it and how.

One element of the grain pipeline is one whole host batch. So threads only decide who makes a
batch, never what is in it; memory is bounded by `buffer` batches; and the reader waits when
nobody consumes. Every example has a random generator of its own, seeded by (seed, step, position
in the global batch): the same on one host and on many.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from jaxequi.data import order
from jaxequi.data.errors import DataError
from jaxequi.errors import Refusal
from jaxequi.types import Record, Source

Rows = Callable[[int], np.ndarray]
ON_ERROR = ("raise", "skip")
ATTEMPTS = 16  # stand-ins tried for one unreadable example before giving up
# Of the last WINDOW examples at most the share SKIPPED may be unreadable, TOLERATED of them always.
WINDOW = 1000
SKIPPED = 0.1
TOLERATED = 16


class Batches(Iterator[dict[str, Any]]):
    """Host batches in order; a context manager, to be closed when not read to the end.

    Attributes:
      skipped: row -> why it could not be read, with `on_error="skip"`.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Record, np.random.Generator], Record],
        rows: Rows,
        *,
        seed: int,
        start: int,
        stop: int,
        num_views: int,
        positions: Sequence[int] | np.ndarray | None,
        threads: int,
        buffer: int,
        on_error: str,
    ):
        import grain  # half a second, for which no --help waits

        self._source, self._transform, self._rows = source, transform, rows
        self._seed, self._num_views, self._positions = seed, num_views, positions
        self._on_error = on_error
        self._lock = threading.Lock()
        self.skipped: dict[int, str] = {}
        self._window: collections.deque[tuple[int, list[str]]] = collections.deque()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        steps = grain.MapDataset.range(start, stop)
        self._batches = iter(steps.map(self._batch).to_iter_dataset(options))

    def __next__(self) -> dict[str, Any]:
        batch, reasons = next(self._batches)
        self._window.append((len(batch["mask"]), reasons))
        while sum(size for size, _ in self._window) - self._window[0][0] >= WINDOW:
            self._window.popleft()
        seen = sum(size for size, _ in self._window)
        self._refuse_if_many([why for _, some in self._window for why in some], seen, SKIPPED)
        return batch

    def _refuse_if_many(self, reasons: list[str], seen: int, share: float) -> None:
        """Raise an error if more of some examples were skipped than is no accident."""
        if len(reasons) > max(TOLERATED, share * seen):
            raise DataError(
                f"{len(reasons)} of {seen} examples of {self._source} cannot be read, which is "
                f"more than {share:.0%}; repair the data set. The first: {'; '.join(reasons[:3])}"
            )

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and let go of the threads and the buffered batches."""
        self._batches.close()

    def _example(self, row: int, rng: np.random.Generator) -> Record:
        """Read and transform one example; the error names its row."""
        views = self._stored_views(rng)
        try:
            [record] = self._source.read([row], views[None])
            return self._transform(record, rng)
        except Exception as error:
            raise DataError(f"example {row} of {self._source}: {error}") from error

    def _stored_views(self, rng: np.random.Generator) -> np.ndarray:
        if self._num_views == self._source.num_views == 1:
            return np.zeros(1, np.int64)
        return rng.choice(self._source.num_views, self._num_views, replace=False)

    def _generator(self, step: int, position: int, *attempt: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, step, position, *attempt))

    def _stand_in(self, step: int, position: int, row: int, error: Exception) -> tuple[int, Record]:
        """Replace an unreadable example by another, chosen by (seed, step, position) alone."""
        for attempt in range(1, ATTEMPTS + 1):
            with self._lock:
                if row not in self.skipped:
                    self.skipped[row] = str(error)
                    logging.warning("skipped (%d so far): %s", len(self.skipped), error)
            rng = self._generator(step, position, attempt)
            row = int(rng.integers(len(self._source)))
            try:
                return row, self._example(row, rng)
            except DataError as next_error:
                error = next_error
        raise DataError(f"{ATTEMPTS} examples in a row cannot be read; the last: {error}")

    def _batch(self, step: int) -> tuple[dict[str, Any], list[str]]:
        """Make a batch; say why the examples that others stand for could not be read."""
        reasons: list[str] = []
        rows = np.asarray(self._rows(step))
        here = range(len(rows)) if self._positions is None else self._positions
        positions = [int(position) for position in here]
        mask = rows[positions] != order.PADDING
        read = [int(row) for row in np.where(mask, rows[positions], 0)]
        generators = [self._generator(step, position) for position in positions]
        try:
            views = np.stack([self._stored_views(rng) for rng in generators])
            records = self._source.read(read, views)
            records = [self._transform(r, rng) for r, rng in zip(records, generators, strict=True)]
        except Exception as error:  # one by one, to learn which
            records = []
            for at, (position, row) in enumerate(zip(positions, read)):
                try:
                    records.append(self._example(row, self._generator(step, position)))
                except DataError as bad:
                    if self._on_error == "raise":
                        raise
                    reasons.append(str(bad))
                    self._refuse_if_many(reasons, len(read), 0.5)
                    read[at], record = self._stand_in(step, position, row, bad)
                    mask[at] = False
                    records.append(record)
            if self._on_error == "raise":  # every example is good alone
                raise DataError(f"batch {step} of {self._source}: {error}") from error
        return _stack(records, read, mask), reasons


def _stack(records: list[Record], rows: list[int], mask: np.ndarray) -> dict[str, Any]:
    shapes = {record["views"].shape for record in records}
    if len(shapes) > 1:
        raise DataError(
            f"the images of one batch have unequal sizes {sorted(shapes)}; end every pipe with "
            "a crop or a resize to one size."
        )
    batch: dict[str, Any] = {
        "views": np.stack([record["views"] for record in records]),
        "label": np.asarray([record["label"] for record in records], np.int32),
        "index": np.asarray(rows, np.int32),
        "mask": mask,
    }
    for name in records[0].keys() - {"image", "aug", *batch}:
        batch[name] = np.stack([record[name] for record in records]).astype(np.float32)
    if records[0]["aug"]:
        batch["aug"] = {
            name: np.stack([record["aug"][name] for record in records])
            for name in records[0]["aug"]
        }
    return batch


def batches(
    source: Source,
    transform: Callable[[Record, np.random.Generator], Record],
    rows: Rows,
    *,
    seed: int,
    start: int,
    stop: int,
    num_views: int = 1,
    positions: Sequence[int] | np.ndarray | None = None,
    threads: int = 4,
    buffer: int = 4,
    on_error: str = "raise",
) -> Batches:
    """Iterate over the host batches of steps `start` to `stop - 1`.

    Each is a dict of numpy arrays (b positions of this host): `views` u8[b, V, H, W, 3], `label`
    and `index` i32[b], `mask` bool[b] (False on padding and on stand-ins), what else the records of
    the source hold, such as `latent` f32[b, V, L], and `aug` {op: f32[b, V, k]} if an op drew.

    Args:
      source: the data set.
      transform: from `transforms.make`.
      rows: step -> rows of the global batch, i64[B], as `functools.partial(order.epochs, seed,
        batch_size=B, n=len(source))`; `order.PADDING` stands for no example.
      seed: of the host randomness.
      start: first step.
      stop: step before which to end.
      num_views: stored images to draw of each example, all different ones.
      positions: places in the global batch that this host loads; all by default.
      threads: batches made at the same time; 0 makes each when it is asked for.
      buffer: batches held ready; with those in the making it bounds the memory.
      on_error: "raise" an error that names the example, or "skip": put another in its place, the
        same on every host, with `mask` False, count it in `skipped` and log it. Skipping ends in an
        error that says the first reasons when over 16 examples, and over half of a batch or a
        tenth of the last 1000 examples, cannot be read.

    Raises:
      ValueError: more views than the source stores, or an option that does not exist. While
        iterating, `DataError` (a ValueError) for an example that cannot be read, or for many.
    """
    if not 1 <= num_views <= source.num_views:
        raise Refusal(
            f"num_views is {num_views}, but {source} stores {source.num_views} of an example."
        )
    if on_error not in ON_ERROR:
        raise Refusal(f"on_error is {on_error!r}; it must be one of {', '.join(ON_ERROR)}.")
    if threads < 0 or buffer < 1:
        raise Refusal(f"threads is {threads} (at least 0), buffer is {buffer} (at least 1).")
    if not 0 <= start <= stop:
        raise Refusal(f"steps from {start} to {stop}: they must be 0 <= start <= stop.")
    return Batches(
        source,
        transform,
        rows,
        seed=seed,
        start=start,
        stop=stop,
        num_views=num_views,
        positions=positions,
        threads=threads,
        buffer=buffer,
        on_error=on_error,
    )
