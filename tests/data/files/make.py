"""Make the files of this folder with other programs: TensorFlow, stock TFDS, tensorboardX, Pillow.

Run where those are installed (none of the first three is needed by the tests):
`python tests/data/files/make.py`. The images are crops of scikit-image's cat, `chelsea` (CC0).
"""

import io
import pathlib
import tempfile

import numpy as np
from PIL import Image
from skimage import data

HERE = pathlib.Path(__file__).parent
CAT = data.chelsea()


def crop(number, side=24):
    return Image.fromarray(CAT[50 + 9 * number :, 100 + 13 * number :][:side, : side + 8])


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def images():
    rgb = crop(0, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    files = {
        "rgb.jpg": encoded(rgb, quality=90),
        "grey.jpg": encoded(rgb.convert("L")),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), quality=90),
        "progressive.jpg": encoded(rgb, quality=85, progressive=True),
        "exif_rotated.jpg": encoded(rgb, quality=90, exif=exif),
        "png_named.JPEG": encoded(rgb, "PNG"),
        "palette.png": encoded(rgb.convert("P"), "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
    }
    grey16 = np.asarray(rgb.convert("L")).astype(np.uint16) * 256 + 17
    files["grey16.png"] = encoded(Image.fromarray(grey16), "PNG")
    for name, content in files.items():
        (HERE / name).write_bytes(content)


def records(writer, layout, numbers):
    import tensorflow as tf

    for number in numbers:
        image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(crop(number))]))
        label = number % 3

        def integer(value):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

        if layout == "imagenet":
            feature = {
                "image/encoded": image,
                "image/class/label": integer(label + 1),
                "image/height": integer(24),
                "image/object/bbox/xmin": tf.train.Feature(
                    float_list=tf.train.FloatList(value=[0.25, 0.5])
                ),
                "image/filename": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[b"n%d.JPEG" % number])
                ),
            }
        else:
            feature = {"image": image, "label": integer(label)}
        writer.write(
            tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
        )


def tfrecords():
    import tensorflow as tf
    from tensorboardX.record_writer import RecordWriter

    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        with tf.io.TFRecordWriter(str(HERE / f"imagenet-train-{shard:05d}-of-00002")) as writer:
            records(writer, "imagenet", numbers)
    writer = RecordWriter(str(HERE / "tensorboardx.tfrecord"))
    records(writer, "tfds", (0, 1, 2))
    writer.close()


def tfds_directory():
    """Let the stock builder of fashion_mnist prepare ten images, as TFRecords and ArrayRecord."""
    from unittest import mock

    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification import mnist

    images = np.stack([np.asarray(crop(n, 28).convert("L"))[:28, :28] for n in range(10)])
    with tempfile.TemporaryDirectory() as folder:
        data_file, label_file = pathlib.Path(folder) / "data", pathlib.Path(folder) / "labels"
        data_file.write_bytes(bytes(16) + images.tobytes())
        label_file.write_bytes(bytes(8) + bytes(range(10)))
        paths = {
            f"{s}_{k}": f
            for s in ("train", "test")
            for k, f in (("data", data_file), ("labels", label_file))
        }
        for file_format in ("tfrecord", "array_record"):
            builder = tfds.builder(
                "fashion_mnist", data_dir=HERE / "tfds" / file_format, file_format=file_format
            )
            with (
                mock.patch.object(
                    tfds.download.DownloadManager, "download_and_extract", return_value=paths
                ),
                mock.patch.object(mnist, "_TRAIN_EXAMPLES", 10),
                mock.patch.object(mnist, "_TEST_EXAMPLES", 10),
            ):
                builder.download_and_prepare()


if __name__ == "__main__":
    images()
    tfrecords()
    tfds_directory()
