"""Prepare TFDS data sets without TensorFlow: `python -m jaxequi.prepare.tfds NAME`.

Names, features, keys, splits, labels and versions are those of the stock builders, whose own
code needs TensorFlow to read archives and to encode images. What they would generate is
generated here, and written by TFDS as ArrayRecord, so that `tfds.data_source` and TensorFlow
users can read it. Archives are downloaded by TFDS's download manager with its checksums, or taken
from `--manual-dir` where they lie there already.

NAME is mnist, fashion_mnist, cifar10, cifar100, stl10, oxford_flowers102, patch_camelyon or
imagenet2012.

    python -m jaxequi.prepare.tfds cifar10
    python -m jaxequi.prepare.tfds imagenet2012 --manual-dir /data/tars
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from jaxequi import cli, names
from jaxequi.data import decoding
from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import open_file, read_file
from jaxequi.data.sources.arrays import load_idx
from jaxequi.data.sources.folder import Folder
from jaxequi.errors import Refusal
from jaxequi.prepare.archives import gunzip, members

FLAGS = flags.FlagValues()
_DATA_DIR = flags.DEFINE_string(
    "data-dir", "", "Where to write; TFDS's default if absent.", flag_values=FLAGS
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual-dir", "", "Where archives lie already.", flag_values=FLAGS
)

Examples = Iterator[tuple[Any, dict[str, Any]]]
Fetch = Callable[[str], epath.Path]
Splits = dict[str, Examples]


def png(image: np.ndarray) -> bytes:
    """Encode u8[H, W], u8[H, W, 1] or u8[H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG")
    return buffer.getvalue()


# --- MNIST and Fashion-MNIST ------------------------------------------------------------------


def mnist(builder: Any, fetch: Fetch) -> Splits:
    """Read the four IDX files."""

    def examples(stem: str) -> Examples:
        images = load_idx(fetch(f"{builder.URL}{stem}-images-idx3-ubyte.gz"))
        labels = load_idx(fetch(f"{builder.URL}{stem}-labels-idx1-ubyte.gz"))
        for index, (image, label) in enumerate(zip(images, labels)):
            yield index, {"image": png(image), "label": int(label)}

    return {"train": examples("train"), "test": examples("t10k")}


# --- CIFAR-10 and CIFAR-100 -------------------------------------------------------------------


def cifar(builder: Any, fetch: Fetch) -> Splits:
    """Read the binary version: label bytes, then 3072 bytes of an image, colour by colour."""
    info = builder._cifar_info
    files = {path.removeprefix(info.prefix): content for path, content in members(fetch(info.url))}
    for key, file in zip(info.label_keys, info.label_files):
        builder.info.features[key].names = [n for n in files[file].decode().split("\n") if n]

    def examples(prefix: str, parts: list[str]) -> Examples:
        keys = info.label_keys
        index = 0
        for part in parts:
            rows = np.frombuffer(files[part], np.uint8).reshape(-1, len(keys) + 3072)
            for row in rows:
                image = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                labels = {key: int(label) for key, label in zip(keys, row)}
                yield index, {"id": f"{prefix}{index:05d}", "image": png(image), **labels}
                index += 1

    return {
        "train": examples("train_", info.train_files),
        "test": examples("test_", info.test_files),
    }


# --- STL-10 -----------------------------------------------------------------------------------


def stl10(builder: Any, fetch: Fetch) -> Splits:
    """Read the binary version: images by colour and column, labels from 1."""
    url = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    archive = fetch(url)
    small = {
        path.rpartition("/")[2]: content
        for path, content in members(archive)
        if not path.endswith("_X.bin")
    }
    builder.info.features["label"].names = small["class_names.txt"].decode().split()

    def examples(split: str) -> Examples:
        stored = small.get(f"{split}_y.bin")
        labels = None if stored is None else np.frombuffer(stored, np.uint8).astype(int) - 1
        for path, content in members(archive):
            if path.endswith(f"/{split}_X.bin"):
                images = np.frombuffer(content, np.uint8).reshape(-1, 3, 96, 96)
                for index, image in enumerate(images.transpose(0, 3, 2, 1)):
                    label = -1 if labels is None else int(labels[index])
                    yield index, {"image": png(image), "label": label}

    return {
        "train": examples("train"),
        "test": examples("test"),
        "unlabelled": examples("unlabeled"),
    }


# --- Flowers-102 ------------------------------------------------------------------------------


def oxford_flowers102(builder: Any, fetch: Fetch) -> Splits:
    """Read the tar of JPEGs and the two MATLAB files of labels and splits."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError("oxford_flowers102 needs scipy: pip install scipy") from error
    base = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    images = {
        path.rpartition("/")[2]: content
        for path, content in members(fetch(f"{base}102flowers.tgz"))
    }
    labels = loadmat(io.BytesIO(read_file(fetch(f"{base}imagelabels.mat"))))["labels"][0]
    numbers = loadmat(io.BytesIO(read_file(fetch(f"{base}setid.mat"))))

    def examples(key: str) -> Examples:
        for number in numbers[key][0]:
            file = f"image_{number:05d}.jpg"
            label = int(labels[number - 1]) - 1
            yield file, {"image": images[file], "label": label, "file_name": file}

    return {
        "train": examples("trnid"),
        "test": examples("tstid"),
        "validation": examples("valid"),
    }


# --- PatchCamelyon ----------------------------------------------------------------------------


def patch_camelyon(builder: Any, fetch: Fetch) -> Splits:
    """Read the HDF5 files of images and labels."""
    try:
        import h5py
    except ImportError as error:
        raise DataError("patch_camelyon needs h5py: pip install h5py") from error
    base = "https://zenodo.org/record/2546921/files/camelyonpatch_level_2_split_"

    def examples(split: str) -> Examples:
        files = [io.BytesIO(gunzip(fetch(f"{base}{split}_{kind}.h5.gz"))) for kind in "xy"]
        with h5py.File(files[0], "r") as images, h5py.File(files[1], "r") as answers:
            for index, (image, label) in enumerate(zip(images["x"], answers["y"])):
                key = f"{split}_{index}"
                yield key, {"id": key, "image": png(image), "label": int(label.ravel()[0])}

    return {
        "test": examples("test"),
        "train": examples("train"),
        "validation": examples("valid"),
    }


# --- ImageNet ---------------------------------------------------------------------------------

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
FOLDERS = {"train": "train", "validation": "val"}


def _as_jpeg(content: bytes, where: str) -> bytes:
    """Make RGB JPEGs of the 22 CMYK JPEGs and the PNG among ImageNet's files."""
    try:
        with decoding.open_image(content) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return content
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=100, subsampling=0)
            return buffer.getvalue()
    except (DataError, OSError) as error:
        raise DataError(f"{where}: {error}") from error


def _synset(name: str, known: Sequence[str], where: str) -> str:
    if name not in known:
        raise DataError(
            f"{where} holds {name!r}, which is none of the {len(known)} synsets of ImageNet "
            f"({known[0]}, ...); remove or rename it."
        )
    return name


def _imagenet_tar_train(path: epath.Path, known: Sequence[str]) -> Examples:
    for inner, content in members(path):
        wnid = _synset(inner.removesuffix(".tar"), known, shown(path))
        where = f"{shown(path)}:{shown(inner)}"
        for file, image in members(io.BytesIO(content), name=where):
            jpeg = _as_jpeg(image, f"{where}:{shown(file)}")
            yield file, {"file_name": file, "image": jpeg, "label": wnid}


def _imagenet_tar_validation(path: epath.Path, known: Sequence[str]) -> Examples:
    import tensorflow_datasets as tfds

    # In the order of the file names, which are numbered from 1.
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for file, image in members(path):
        where = f"{shown(path)}:{shown(file)}"
        digits = file.rpartition("_")[2].removesuffix(".JPEG")
        number = int(digits) if digits.isdecimal() and len(digits) < 10 else 0
        if not 1 <= number <= len(labels):
            raise DataError(f"{where} is not ILSVRC2012_val_N.JPEG with N from 1 to {len(labels)}.")
        label = _synset(labels[number - 1], known, where)
        yield file, {"file_name": file, "image": _as_jpeg(image, where), "label": label}


def _imagenet_folders(root: epath.Path, known: Sequence[str]) -> Examples:
    source = Folder(root)
    for name in source.class_names:
        _synset(name, known, shown(root))

    def examples() -> Examples:
        for path in source.paths:
            wnid, _, file = path.partition("/")
            where = f"{shown(root)}/{shown(path)}"
            jpeg = _as_jpeg(read_file(root / path), where)
            yield file, {"file_name": file, "image": jpeg, "label": wnid}

    return examples()


def imagenet2012(builder: Any, manual_dir: epath.Path | None) -> Splits:
    """Read the two tars, or folders train/<synset> and val/<synset>, of the manual directory.

    Raises:
      DataError: neither is there; the message lists what was looked for, and where. A folder that
        is no synset. While they are read: a tar that is none, an image that is none.
    """
    if manual_dir is None:
        raise DataError(
            "ImageNet is downloaded by hand from https://image-net.org/download-images; name the "
            "directory of the two tars, or of the folders train and val, with --manual-dir."
        )
    known = builder.info.features["label"].names
    readers = {"train": _imagenet_tar_train, "validation": _imagenet_tar_validation}
    places = {split: (manual_dir / TARS[split], manual_dir / FOLDERS[split]) for split in TARS}
    lost = [
        f"  {split}: neither {tar} nor the folder {folder}"
        for split, (tar, folder) in places.items()
        if not tar.exists() and not folder.is_dir()
    ]
    if lost:
        raise DataError("parts of ImageNet are missing:\n" + "\n".join(lost))
    return {
        split: readers[split](tar, known) if tar.exists() else _imagenet_folders(folder, known)
        for split, (tar, folder) in places.items()
    }


# --- the program ------------------------------------------------------------------------------

READERS: Mapping[str, Callable[[Any, Fetch], Splits]] = {
    "mnist": mnist,
    "fashion_mnist": mnist,
    "cifar10": cifar,
    "cifar100": cifar,
    "stl10": stl10,
    "oxford_flowers102": oxford_flowers102,
    "patch_camelyon": patch_camelyon,
}
NAMES = (*READERS, "imagenet2012")


def _fetcher(builder: Any, downloads: Any, manual_dir: epath.Path | None) -> Fetch:
    """Return `url -> file`: from the manual directory, checked, or downloaded."""

    def fetch(url: str) -> epath.Path:
        local = manual_dir / url.rpartition("/")[2] if manual_dir else None
        if local is None or not local.exists():
            return epath.Path(downloads.download(url))
        expected = builder.url_infos.get(url)
        if expected is not None:
            with open_file(local) as (file, _):
                found = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
            if found != expected.checksum:
                raise DataError(
                    f"{local} is not the file that TFDS knows: its SHA-256 is {found}, not "
                    f"{expected.checksum}. It is damaged, or another release."
                )
        return local

    return fetch


def _checked(name: str, split: str, examples: Examples, features: Mapping[str, Any]) -> Examples:
    """Pass examples on whose labels are classes; all that is wrong with them is a `DataError`."""
    classes = {key: kind for key, kind in features.items() if hasattr(kind, "num_classes")}
    try:
        for key, one in examples:
            for label, kind in classes.items():
                given = one[label]
                if isinstance(given, int) and not -1 <= given < kind.num_classes:
                    raise DataError(
                        f"example {key!r} has the {label} {given}; there are {kind.num_classes}, "
                        "counted from 0."
                    )
            yield key, one
    except DataError as error:
        raise DataError(f"{name}, {split}: {error}") from error
    except Exception as error:  # the readers take archives for what their authors publish
        raise DataError(
            f"{name}, {split}: an archive is not what its authors publish "
            f"({type(error).__name__}: {shown(error)}). Fetch it again."
        ) from error


def _innermost(error: BaseException) -> DataError | None:
    """The refusal of ours that is behind an error of TFDS."""
    found: DataError | None = None
    at: BaseException | None = error
    while at is not None:
        found = at if found is None and isinstance(at, DataError) else found
        at = at.__cause__ or at.__context__
    return found


@contextlib.contextmanager
def _leaving_nothing(place: epath.Path) -> Iterator[None]:
    """Remove the empty folders that a failing preparation of `place` made.

    TFDS removes half a data set itself. Archives that it fetched are whole, and stay.
    """
    root = place.parent.parent
    folders = [root / "downloads/extracted", root / "downloads/manual", root / "downloads", place]
    made = [each for each in (*folders, *place.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> epath.Path:
    """Write a data set as a TFDS directory of ArrayRecords, and return that directory.

    Raises:
      ValueError: an unknown name, a missing package or file, a file with a wrong checksum, or with
        another content than its authors publish. Of the data set nothing is left then.
    """
    if name not in NAMES:
        raise names.unknown("data set", name, NAMES)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise Refusal("this needs tensorflow-datasets: pip install 'jaxequi[tfds]'") from error
    manual = epath.Path(manual_dir).expanduser() if manual_dir else None
    if manual is not None and not manual.is_dir():
        raise DataError(f"--manual-dir {manual} is no directory.")
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    if name == "imagenet2012":
        imagenet2012(builder, manual)  # says what is missing before anything is written

    def splits(dl_manager: Any) -> Splits:
        if name == "imagenet2012":
            found = imagenet2012(builder, manual)
        else:
            found = READERS[name](builder, _fetcher(builder, dl_manager, manual))
        features = builder.info.features
        return {split: _checked(name, split, each, features) for split, each in found.items()}

    builder._split_generators = splits
    place = epath.Path(builder.data_dir)
    with _leaving_nothing(place):
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS packs ours into its own
            raise _innermost(error) or DataError(
                f"{name} cannot be prepared ({type(error).__name__}: {shown(error)})."
            ) from error
    return place


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    try:
        [name] = cli.arguments(argv, FLAGS, ["NAME"], __doc__)
        place = prepare(name, _DATA_DIR.value, _MANUAL_DIR.value)
    except OSError as error:
        raise Refusal(str(error)) from error
    print(f"{name} is in {place}")
    return 0


if __name__ == "__main__":
    cli.run(main)
