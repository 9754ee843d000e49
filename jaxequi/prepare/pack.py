"""Pack any source into ArrayRecord shards: `python -m jaxequi.prepare.pack SOURCE OUT`.

SOURCE is written like a step of a pipe, its arguments literals:

    python -m jaxequi.prepare.pack "threedie(root='/data/3DIEBench', split='train')" packed/train

Encoded pictures are copied as they are, arrays become PNG; a record holds one picture with its
label and latents (see `data/sources/packed.py`). A shard is complete or absent: a run that was
stopped goes on with the first shard that is missing, and the manifest, with the SHA-256 of every
shard, comes last.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image
from rich import progress

from jaxequi.data import example
from jaxequi.data.errors import DataError
from jaxequi.data.sources._open import open_source
from jaxequi.data.sources.packed import MANIFEST
from jaxequi.types import Record, Source

READ_AT_ONCE = 64  # pictures in one call of the source


def _encoded(picture: Any) -> bytes:
    if isinstance(picture, bytes):
        return picture
    buffer = io.BytesIO()
    image = np.asarray(picture)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _records(record: Record) -> Iterator[bytes]:
    """Encode the pictures of one example, a record each."""
    for view, picture in enumerate(record["image"]):
        features: dict[str, Any] = {"image": _encoded(picture), "label": int(record["label"])}
        if "latent" in record:
            features["latent"] = np.asarray(record["latent"][view], np.float32)
        yield example.build(features)


def _write_shard(source: Source, rows: range, path: epath.Path) -> dict[str, Any]:
    """Write examples to a new file, renamed when whole; return its entry in the manifest."""
    partial = path.with_name(path.name + ".partial")
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    count = 0
    step = max(1, READ_AT_ONCE // source.num_views)
    for start in range(rows.start, rows.stop, step):
        some = list(range(start, min(start + step, rows.stop)))
        views = np.tile(np.arange(source.num_views), (len(some), 1))
        for record in source.read(some, views):
            for data in _records(record):
                writer.write(data)
                count += 1
    writer.close()
    entry = {"file": path.name, "records": count, **_check_sum(partial)}
    note = path.with_name(path.name + ".json")
    note.write_text(json.dumps(entry))
    partial.rename(path)
    return entry


def _check_sum(path: epath.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().length, "sha256": digest}


def _done(path: epath.Path) -> dict[str, Any] | None:
    """Return the entry of a shard that an earlier run finished."""
    note = path.with_name(path.name + ".json")
    if not path.exists() or not note.exists():
        return None
    try:
        entry = json.loads(note.read_text())
    except ValueError:
        return None
    return entry if entry["bytes"] == path.stat().length else None


def pack(source: Source, out: epath.PathLike, shard_examples: int = 1024, threads: int = 4) -> None:
    """Write a source into a folder of shards; go on where an earlier run stopped.

    Raises:
      ValueError: a picture that cannot be read, or a folder that holds another packed source.
    """
    if shard_examples < 1:
        raise ValueError(f"shard_examples is {shard_examples}; it must be at least 1.")
    folder = epath.Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "source": str(source),
        "examples": len(source),
        "num_views": source.num_views,
        "class_names": list(source.class_names),
        "shard_examples": shard_examples,
    }
    plan = folder / "plan.json"
    if plan.exists() and json.loads(plan.read_text()) != about:
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
            raise
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({**about, "shards": entries}, indent=1))
    partial.rename(folder / MANIFEST)


def verify(out: epath.PathLike) -> list[str]:
    """Compare every shard with its SHA-256; return a line for each that differs."""
    folder = epath.Path(out).expanduser()
    manifest = json.loads((folder / MANIFEST).read_text())
    wrong = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        if not path.exists():
            wrong.append(f"{path} is missing")
        elif _check_sum(path)["sha256"] != entry["sha256"]:
            wrong.append(f"{path} differs from its checksum")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxequi.prepare.pack",
        description="Pack a data source into ArrayRecord shards for fast random access.",
    )
    parser.add_argument("source", help="such as \"folder(root='data/train')\"")
    parser.add_argument("out", help="folder of the shards")
    parser.add_argument("--shard-examples", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--verify", action="store_true", help="only check the shards of OUT")
    options = parser.parse_args(arguments)
    try:
        if options.verify:
            wrong = verify(options.out)
            print("\n".join(wrong) or "every shard is whole")
            return 1 if wrong else 0
        source = open_source(options.source)
        pack(source, options.out, options.shard_examples, options.threads)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
