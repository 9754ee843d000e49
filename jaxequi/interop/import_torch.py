"""Read weights of torch into a run: python -m jaxequi.interop.import_torch --file=FILE

    --file=model.pth --config=configs/sie.py:sie,paper
    --file=p4.ckpt --config=configs/classification.py:cifar10
    --file=moco_v2_200ep_pretrain.pth.tar --config=configs/moco.py:moco_v2,paper
    --file=last_epoch_ckpt.pth.tar --config=configs/byol.py:sgd,paper     # of revisitAIRL
    --file=resnet50.pth                    # torchvision's need no config, nor do MAE's encoders

  --file FILE        as `torch.save` wrote it; one that would run code is refused
  --config CONFIG    the method and the backbone that the file is of
  --format NAME      of jaxequi/interop/formats/; told by the names in the file, if not given
  --workdir DIR      the run that is made (default: FILE without its ending)
  --images SOURCE    images like those of the training, such as "folder(root='imagenet/train')", for
                     files that leave open what they can decide (equivision's of D_N); by default
                     two photographs
  --count N          how many of them, cropped as the config's training does (default: 256)

Every key must find its place, else the difference is shown (- what the network needs, + what the
file has) and nothing is written. Needs torch: pip install -e ".[torch]".
"""

from __future__ import annotations

import pathlib

import jax
import ml_collections
from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.interop import files, formats, networks

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
_FILE = flags.DEFINE_string("file", None, "The file of torch.", FLAGS)
_FORMAT = flags.DEFINE_string("format", None, "Its format; by default told by its names.", FLAGS)
_IMAGES = flags.DEFINE_string("images", "photographs", "Images that decide.", FLAGS)
_COUNT = flags.DEFINE_integer("count", 256, "Of the images.", 1, flag_values=FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to be made.", FLAGS)


@cli.program
def main(argv: list[str]) -> int:
    """Import the file of the command line."""
    cli.arguments(argv, FLAGS, [], __doc__)
    if not _FILE.value:
        raise Refusal("give --file=FILE.pth; --help says more")
    file = pathlib.Path(_FILE.value)
    workdir = pathlib.Path(_WORKDIR.value or file.with_suffix(""))
    config = _config()
    state, epoch = files.state_dict(files.read_pth(file))
    name = _FORMAT.value or formats.of_file(state, config)
    network = formats.find(name).read(state, config)
    if network.undecided is not None:
        network = network.undecided(networks.images(network.config, _IMAGES.value, _COUNT.value))
    networks.save(workdir, network.config, network.variables, epoch)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    print(f"{workdir}: {count:,} parameters from {file} ({len(state)} arrays, format {name})")
    for line in network.said:
        print(line)
    for line in network.left_out:
        print(f"left out: {line}")
    return 0


def _config() -> ml_collections.ConfigDict | None:
    """The config of the command line, if there is one."""
    if FLAGS.config is None:
        return None
    config, overridden, given = cli.config(FLAGS)
    if config.get("backbone") is None:
        raise Refusal(f"{given} describes no network; give the config of a training")
    config = config.copy_and_resolve_references()
    networks.follow_names(config, overridden)
    return config


if __name__ == "__main__":
    cli.run(main)
