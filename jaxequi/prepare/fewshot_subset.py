"""Make EqInv's few-shot sets: `python -m jaxequi.prepare.fewshot_subset TRAIN OUT --shots 10`.

The reference draws `shots` positions out of 0 to 49 once and takes the files at those positions,
sorted, in every class (its tool, unseeded); that is the default here, seeded. `--independent`
draws anew for each class. Files keep their names; `val` and `testgt` are those of the whole set.
"""

from __future__ import annotations

import argparse
import shutil
import sys

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError
from jaxequi.data.sources.folder import Folder


def choose(
    counts: list[int], shots: int, seed: int, *, independent: bool, pool: int = 50
) -> list[np.ndarray]:
    """Choose sorted positions i64[shots] for each class of `counts` files.

    Args:
      counts: files of each class.
      shots: files to keep of a class.
      seed: of the draw.
      independent: draw for each class out of all its files, in place of once out of `pool`.
      pool: positions that the common draw chooses from.

    Raises:
      DataError: a class has too few files.
    """
    least = min(counts)
    if shots < 1 or shots > least or (not independent and pool > least):
        need = shots if independent else max(shots, pool)
        raise DataError(f"every class must have {need} files; the smallest has {least}.")
    rng = np.random.default_rng(seed)
    if independent:
        return [np.sort(rng.choice(count, shots, replace=False)) for count in counts]
    return [np.sort(rng.choice(pool, shots, replace=False))] * len(counts)


def subset(
    train: epath.PathLike,
    out: epath.PathLike,
    shots: int,
    seed: int = 0,
    *,
    independent: bool = False,
) -> int:
    """Copy the chosen files of a folder of classes; return how many.

    Raises:
      ValueError: a class with too few files, or an `out` that has files in it.
    """
    source = Folder(train)
    target = epath.Path(out).expanduser()
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty.")
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    chosen = choose(counts, shots, seed, independent=independent)
    copied = 0
    first = 0
    for count, positions in zip(counts, chosen):
        for position in positions:
            path = source.paths[first + int(position)]
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.root / path, target / path)
            copied += 1
        first += count
    return copied


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxequi.prepare.fewshot_subset",
        description="Copy a few pictures of each class.",
    )
    parser.add_argument("train", help="folder of class folders")
    parser.add_argument("out", help="new folder of class folders")
    parser.add_argument("--shots", type=int, required=True, help="10, 20 or 50 in EqInv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--independent", action="store_true", help="draw for each class anew")
    options = parser.parse_args(arguments)
    try:
        copied = subset(
            options.train,
            options.out,
            options.shots,
            options.seed,
            independent=options.independent,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{copied} files are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
