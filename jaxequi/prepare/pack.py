"""Pack any source into ArrayRecord shards: `python -m jaxequi.prepare.pack SOURCE OUT`.

SOURCE is written like a step of a pipe, its arguments literals:

    python -m jaxequi.prepare.pack "threedie(root='/data/3DIEBench', split='train')" packed/train

Encoded images are copied as they are, arrays become PNG; a record holds one image with its
label and latents (see `data/sources/packed.py`). A shard is complete or absent: a run that was
stopped goes on with the first shard that is missing, and the manifest, with the SHA-256 of every
shard, comes last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from array_record.python import array_record_module
from etils import epath
from PIL import Image
from rich import progress

from jaxequi import cli
from jaxequi.data import example
from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import is_regular, read_file
from jaxequi.data.sources._open import open_source
from jaxequi.data.sources.packed import MANIFEST
from jaxequi.errors import Refusal
from jaxequi.types import Record, Source

FLAGS = flags.FlagValues()
_SHARD_EXAMPLES = flags.DEFINE_integer(
    "shard-examples", 1024, "Examples of a shard.", 1, flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer("threads", 4, "Shards at the same time.", 1, flag_values=FLAGS)
_VERIFY = flags.DEFINE_bool("verify", False, "Only check the shards of OUT.", flag_values=FLAGS)

READ_AT_ONCE = 64  # images in one call of the source


def _encoded(stored: Any) -> bytes:
    if isinstance(stored, bytes):
        return stored
    buffer = io.BytesIO()
    image = np.asarray(stored)
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG")
    return buffer.getvalue()


def _records(record: Record) -> Iterator[bytes]:
    """Encode the images of one example, a record each."""
    for view, image in enumerate(record["image"]):
        features: dict[str, Any] = {"image": _encoded(image), "label": int(record["label"])}
        if "latent" in record:
            features["latent"] = np.asarray(record["latent"][view], np.float32)
        yield example.build(features)


def _write_shard(source: Source, rows: range, path: epath.Path) -> dict[str, Any]:
    """Write examples to a new file, renamed when whole; return its entry in the manifest."""
    partial = path.with_name(path.name + ".partial")
    count = 0
    step = max(1, READ_AT_ONCE // source.num_views)
    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for start in range(rows.start, rows.stop, step):
                some = list(range(start, min(start + step, rows.stop)))
                views = np.tile(np.arange(source.num_views), (len(some), 1))
                for record in source.read(some, views):
                    for data in _records(record):
                        writer.write(data)
                        count += 1
        finally:
            writer.close()
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # of array_record: a full disk, a folder that is gone
            raise DataError(f"{partial} cannot be written: {shown(error)}") from error
        raise
    entry = {"file": path.name, "records": count, **_check_sum(partial)}
    note = path.with_name(path.name + ".json")
    note.write_text(json.dumps(entry))
    partial.replace(path)
    return entry


def _check_sum(path: epath.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().length, "sha256": digest}


def _json(path: epath.Path) -> Any:
    try:
        return json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is missing or damaged: {shown(error)}") from error


def _done(path: epath.Path) -> dict[str, Any] | None:
    """Return the entry of a shard that an earlier run finished."""
    note = path.with_name(path.name + ".json")
    if not path.exists() or not note.exists():
        return None
    try:
        entry = json.loads(read_file(note))
        whole = entry["file"] == path.name and entry["bytes"] == path.stat().length
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry if whole else None


def pack(source: Source, out: epath.PathLike, shard_examples: int = 1024, threads: int = 4) -> None:
    """Write a source into a folder of shards; go on where an earlier run stopped.

    Raises:
      ValueError: an image that cannot be read, or a folder that cannot be written or holds
        another packed source. Shards that are whole stay; there is no other trace.
    """
    if shard_examples < 1:
        raise Refusal(f"shard_examples is {shard_examples}; it must be at least 1.")
    folder = epath.Path(out).expanduser()
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "source": str(source),
        "examples": len(source),
        "num_views": source.num_views,
        "class_names": list(source.class_names),
        "shard_examples": shard_examples,
    }
    plan = folder / "plan.json"
    if plan.exists() and _json(plan) != about:
        raise DataError(f"{folder} holds shards of another source or size; see {plan}.")
    plan.write_text(json.dumps(about))
    starts = range(0, len(source), shard_examples)
    paths = [
        folder / f"data-{number:05d}-of-{len(starts):05d}.array_record"
        for number in range(len(starts))
    ]

    def shard(number: int) -> dict[str, Any]:
        start = starts[number]
        rows = range(start, min(start + shard_examples, len(source)))
        return _done(paths[number]) or _write_shard(source, rows, paths[number])

    entries: list[dict[str, Any]] = []
    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    with (
        progress.Progress(*columns) as bar,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        task = bar.add_task("shards", total=len(starts))
        futures = [pool.submit(shard, number) for number in range(len(starts))]
        try:
            for future in futures:
                entries.append(future.result())
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            if made and not any(path.exists() for path in paths):
                with contextlib.suppress(OSError):  # there is nothing to go on with
                    plan.unlink()
                    folder.rmdir()
            raise
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({**about, "shards": entries}, indent=1))
    partial.replace(folder / MANIFEST)


def verify(out: epath.PathLike) -> list[str]:
    """Compare every shard with its SHA-256; return a line for each that differs.

    Raises:
      ValueError: the folder has no manifest, or a damaged one.
    """
    folder = epath.Path(out).expanduser()
    wrong = []
    try:
        for entry in _json(folder / MANIFEST)["shards"]:
            path, sum_then = folder / entry["file"], entry["sha256"]
            if not is_regular(path):
                wrong.append(f"{shown(path)} is missing")
            elif _check_sum(path)["sha256"] != sum_then:
                wrong.append(f"{shown(path)} differs from its checksum")
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} is damaged: {error!r}; pack again.") from error
    return wrong


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    try:
        text, out = cli.arguments(argv, FLAGS, ["SOURCE", "OUT"], __doc__)
        if _VERIFY.value:
            wrong = verify(out)
            print("\n".join(wrong) or "every shard is whole")
            return 1 if wrong else 0
        pack(open_source(text), out, _SHARD_EXAMPLES.value, _THREADS.value)
    except OSError as error:
        raise Refusal(str(error)) from error
    return 0


if __name__ == "__main__":
    cli.run(main)
