"""The input pipeline against the usual way of doing the same, alternating, best of several runs.

`two_views`: two antialiased crops of 224 with flips from a 500x375 JPEG, against Pillow decoding
for each view. `threedie_pairs`: pairs of 3DIEBench from packed shards, against the published
layout. `photometry`: jitter, grey, blur and solarize of 224x224 images, against Pillow on as
many threads as there are cores. `tfrecord_index`: the offset index of ImageNet-sized records.
`resident_memory`: what a hundred times the records cost a process that reads them shuffled.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import itertools
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxequi import augment
from jaxequi.data import decoding, example, loader, order, recipes, tfrecord_file, transforms
from jaxequi.data.sources import packed, tfrecord, threedie
from jaxequi.prepare.pack import pack

Work = Callable[[], Any]


def fastest(works: dict[Any, Work], rounds: int) -> dict[Any, float]:
    """Run every work in turn, several rounds; return the least seconds of each."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Make an image with the detail of a photograph: noise at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for scale in (1.5, 4, 16, 64, 200):
        size = (max(2, int(width / scale)), max(2, int(height / scale)))
        noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) * scale**0.2
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _usual_pair(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Make two views as torchvision's transforms do: open, crop, resize, flip, for each."""
    views = []
    for _ in range(2):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = transforms.crop_box(image.height, image.width, (0.2, 1), (3 / 4, 4 / 3), 10, rng)
        top, left, h, w = box
        view = image.crop((left, top, left + w, top + h)).resize(
            (224, 224), Image.Resampling.BILINEAR
        )
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views.append(np.asarray(view))
    return np.stack(views)


def two_views(images: int = 48, rounds: int = 6) -> dict[str, float]:
    """Compare pairs a second on one thread, and ours on two.

    The files have 110 KB, as ImageNet's have in the mean. `fast` is the crop with `fast=True`.
    """
    files = [jpeg(photo(500, 375, seed), 96) for seed in range(8)]

    def pairs(more: str = "") -> Callable[[int], np.ndarray]:
        pipe = f"decode|random_resized_crop(224, scale=(0.2, 1){more})|flip"
        transform = transforms.make([pipe] * 2)

        def make(number: int) -> np.ndarray:
            record = {"image": [files[number % len(files)]], "label": 0}
            return transform(record, np.random.default_rng(number))["views"]

        return make

    def usual(number: int) -> np.ndarray:
        return _usual_pair(files[number % len(files)], np.random.default_rng(number))

    def threaded(function: Callable[[int], np.ndarray], threads: int) -> Work:
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        return lambda: list(pool.map(function, range(images)))

    ways = {"exact": pairs(), "fast": pairs(", fast=True"), "usual": usual}
    seconds = fastest(
        {(name, n): threaded(way, n) for name, way in ways.items() for n in (1, 2)}, rounds
    )
    return {
        **{f"{name}_pairs_per_second": images / seconds[name, 1] for name in ways},
        "ratio": seconds["usual", 1] / seconds["fast", 1],
        "floor": 1.5,
        "ratio_exact": seconds["usual", 1] / seconds["exact", 1],
        **{f"{name}_growth_on_2_threads": seconds[name, 1] / seconds[name, 2] for name in ways},
        "bytes_of_a_jpeg": float(np.mean([len(f) for f in files])),
    }


def _write_threedie(root: pathlib.Path, objects: int, views: int) -> None:
    rng = np.random.default_rng(0)
    stored = [
        jpeg(photo(256, 256, seed).filter(ImageFilter.GaussianBlur(2)), 95) for seed in range(6)
    ]
    for number in range(objects):
        folder = root / f"{number % 5:08d}" / f"object{number}"
        folder.mkdir(parents=True)
        for view in range(views):
            (folder / f"image_{view}.jpg").write_bytes(stored[(number + view) % len(stored)])
            np.save(folder / f"latent_{view}.npy", rng.normal(size=7))


def threedie_pairs(objects: int = 40, views: int = 50, rounds: int = 6) -> dict[str, float]:
    """Compare pairs a second: stored bytes and latents alone, and with decoding."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        _write_threedie(root / "files", objects, views)
        loose = threedie.make(str(root / "files"), "train", num_views=views)
        pack(loose, root / "packed")
        close = packed.make(str(root / "packed"))
        rng = np.random.default_rng(0)
        rows = rng.integers(len(loose), size=256).tolist()
        pairs = np.stack([rng.choice(views, 2, replace=False) for _ in rows])

        def decoded(source: Any) -> Work:
            return lambda: [
                [decoding.decode(image) for image in record["image"]]
                for record in source.read(rows, pairs)
            ]

        seconds = fastest(
            {
                "packed": lambda: close.read(rows, pairs),
                "files": lambda: loose.read(rows, pairs),
                "packed, decoded": decoded(close),
                "files, decoded": decoded(loose),
            },
            rounds,
        )
    return {
        "pairs_per_second": len(rows) / seconds["packed"],
        "files_pairs_per_second": len(rows) / seconds["files"],
        "ratio": seconds["files"] / seconds["packed"],
        "floor": 2.0,
        "ratio_with_decoding": seconds["files, decoded"] / seconds["packed, decoded"],
    }


def _pillow_photometry(pixels: np.ndarray, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """Apply drawn parameters as torchvision does on Pillow images."""
    image = Image.fromarray(pixels)
    jitter = drawn["color_jitter"]
    if jitter[0]:
        for part in augment.colour.ORDERS[int(jitter[5])]:
            if part == 3:
                hue, saturation, value = image.convert("HSV").split()
                turn = np.array(jitter[4] * 255).astype(np.int32).astype(np.uint8)
                hue = Image.fromarray(np.asarray(hue) + turn)
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[part]
                image = enhance(image).enhance(float(jitter[part + 1]))
    if drawn["grayscale"][0]:
        image = image.convert("L").convert("RGB")
    if drawn["gaussian_blur"][0]:
        image = image.filter(ImageFilter.GaussianBlur(float(drawn["gaussian_blur"][1])))
    if drawn["solarize"][0]:
        image = ImageOps.solarize(image)
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    return (np.asarray(image).astype(np.float32) / 255 - mean) / std


def photometry(images: int = 48, rounds: int = 6) -> dict[str, float]:
    """Compare images a second of the symmetric BYOL recipe, the same parameters for both."""
    views = np.stack([np.asarray(photo(224, 224, seed)) for seed in range(images)])[:, None]
    run = jax.jit(augment.make(recipes.byol_symmetric().augment))
    key = jax.random.key(0)
    start = time.perf_counter()
    out = jax.block_until_ready(run(key, {"views": views}))
    compile_seconds = time.perf_counter() - start
    drawn = [{k: np.asarray(v)[i, 0] for k, v in out["aug"].items()} for i in range(images)]
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def pillow() -> np.ndarray:
        return np.stack(list(pool.map(_pillow_photometry, views[:, 0], drawn)))

    difference = np.abs(pillow() - np.asarray(out["views"][:, 0])) * 255 * 0.225
    seconds = fastest(
        {"ours": lambda: jax.block_until_ready(run(key, {"views": views})), "pillow": pillow},
        rounds,
    )
    return {
        "images_per_second": images / seconds["ours"],
        "pillow_images_per_second": images / seconds["pillow"],
        "ratio": seconds["pillow"] / seconds["ours"],
        "floor": 2.0,
        "compile_seconds": compile_seconds,
        "share_of_levels_that_differ": float((difference > 0.5).mean()),
    }


def tfrecord_index(records: int = 1000, size: int = 110_000, rounds: int = 6) -> dict[str, float]:
    """Time the index of one and of two files; more than double would not be linear."""

    def content() -> Iterator[bytes]:
        block = np.random.default_rng(0).bytes(size)
        for number in range(records):
            yield number.to_bytes(8, "little") + block[8:]

    with tempfile.TemporaryDirectory() as folder:
        file = tfrecord_file.epath.Path(folder) / "data"
        tfrecord_file.write(file, content())
        seconds = fastest(
            {
                "one": lambda: tfrecord.build_index([file], threads=1),
                "two": lambda: tfrecord.build_index([file, file], threads=1),
            },
            rounds,
        )
        index = tfrecord.build_index([file])
    return {
        "milliseconds_per_1000_records": seconds["one"] * 1e6 / records,
        "ceiling": 10.0,
        "twice_the_records": seconds["two"] / seconds["one"],
        "bytes_a_record_in_the_mapped_index": index.nbytes / records,
    }


def _peak(files: str, steps: int, batch_size: int) -> int:
    """Read shuffled batches of a TFRecord set; return the most bytes that were resident."""
    source = tfrecord.make(files, classes=2)
    rows = functools.partial(order.epochs, 0, batch_size=batch_size, n=len(source))
    transform = transforms.make(["decode"])
    with loader.batches(source, transform, rows, seed=0, start=0, stop=steps) as batches:
        for _ in batches:
            pass
    # of this program alone: getrusage would count what the process was before it became one
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def resident_memory(few: int = 2_000, many: int = 200_000, steps: int = 400) -> dict[str, float]:
    """Compare the peaks of two processes that read as many batches of a small and a large set."""
    image = io.BytesIO()
    photo(6, 6, 0).save(image, "PNG")
    spawn = multiprocessing.get_context("spawn")
    record = example.build({"image": image.getvalue(), "label": np.array([1])})
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            file = tfrecord_file.epath.Path(folder) / str(count)
            tfrecord_file.write(file, itertools.repeat(record, count))
            tfrecord.make(str(file), classes=2)  # builds the index, once
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
                peaks.append(process.submit(_peak, str(file), steps, 64).result())
        size = file.stat().length
    return {
        "megabytes": peaks[0] / 1e6,
        "megabytes_of_100_times_the_records": peaks[1] / 1e6,
        "bytes_a_record": (peaks[1] - peaks[0]) / (many - few),
        "bytes_a_record_on_disk": size / many,
    }


def run() -> dict[str, dict[str, float]]:
    """Run all comparisons."""
    works = (two_views, threedie_pairs, photometry, tfrecord_index, resident_memory)
    return {work.__name__: work() for work in works}
