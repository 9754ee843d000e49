"""Make EqInv's few-shot sets: `python -m jaxequi.prepare.fewshot_subset TRAIN OUT --shots 10`.

The reference draws `shots` positions out of 0 to 49 once and takes the files at those positions,
sorted, in every class (its tool, unseeded); that is the default here, seeded. `--independent`
draws anew for each class. Files keep their names; `val` and `testgt` are those of the whole set.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
from absl import flags
from etils import epath

from jaxequi import cli
from jaxequi.data.errors import DataError
from jaxequi.data.sources._files import open_file
from jaxequi.data.sources.fewshot import choose
from jaxequi.data.sources.folder import Folder
from jaxequi.errors import Refusal

FLAGS = flags.FlagValues()
_SHOTS = flags.DEFINE_integer("shots", None, "Of a class: 10, 20, 50 in EqInv.", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draw.", 0, flag_values=FLAGS)
_INDEPENDENT = flags.DEFINE_bool(
    "independent", False, "Draw for each class anew.", flag_values=FLAGS
)


def subset(
    train: epath.PathLike,
    out: epath.PathLike,
    shots: int,
    seed: int = 0,
    *,
    independent: bool = False,
) -> int:
    """Copy the chosen files of a folder of classes, all or none; return how many.

    Raises:
      ValueError: a class with too few files, a file that cannot be read, or an `out` that is no
        folder or has files in it.
    """
    source = Folder(train)
    target = epath.Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is not empty.")
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    chosen = choose(counts, shots, seed, independent=independent)
    first = np.cumsum([0, *counts])
    paths = [source.paths[row] for start, mine in zip(first, chosen) for row in start + mine]
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        for path in paths:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            with open_file(source.root / path) as (file, _), (partial / path).open("wb") as copy:
                shutil.copyfileobj(file, copy)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(paths)


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    try:
        train, out = cli.arguments(argv, FLAGS, ["TRAIN", "OUT"], __doc__)
        if _SHOTS.value is None:
            raise Refusal("give --shots=10, 20 or 50; --help says more")
        copied = subset(train, out, _SHOTS.value, _SEED.value, independent=_INDEPENDENT.value)
    except OSError as error:
        raise Refusal(str(error)) from error
    print(f"{copied} files are in {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
