"""Write a run as a file of torch: python -m jaxequi.interop.export_torch RUN --file=FILE

    RUN --file=model.pth                              # resumes and evaluates with the original
    RUN --file=final_weights.pth --backbone           # the backbone alone

  --file FILE      the file to be written
  --format NAME    of jaxequi/interop/formats/; told by the run's config, if not given
  --backbone       the backbone alone, where the original has a file of it
  --step N         which checkpoint (default: the newest)
  --epoch N        at which the original's training would go on (default: 0), with a fresh
                   optimizer: the network alone is carried over

What the original could not load is refused with the reason, and what it has no place for is left
out and told. Needs torch: pip install -e ".[torch]".
"""

from __future__ import annotations

import pathlib

from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.interop import files, formats, networks

FLAGS = flags.FlagValues()
_FILE = flags.DEFINE_string("file", None, "The file to be written.", FLAGS)
_FORMAT = flags.DEFINE_string("format", None, "Its format; by default told by the config.", FLAGS)
_BACKBONE = flags.DEFINE_bool("backbone", False, "Write the backbone alone.", FLAGS)
_STEP = flags.DEFINE_integer(
    "step", None, "Which checkpoint; the newest by default.", flag_values=FLAGS
)
_EPOCH = flags.DEFINE_integer("epoch", None, "Of their training; 0.", flag_values=FLAGS)


@cli.program
def main(argv: list[str]) -> int:
    """Export the run of the command line."""
    [folder] = cli.arguments(argv, FLAGS, ["RUN"], __doc__)
    if not _FILE.value:
        raise Refusal("give --file=FILE.pth; --help says more")
    run, file = pathlib.Path(folder), pathlib.Path(_FILE.value)
    step, config, variables = networks.load(run, _STEP.value, _BACKBONE.value)
    name = _FORMAT.value or formats.of_run(config)
    written = formats.find(name).write(config, variables, _EPOCH.value or 0)
    if _EPOCH.value is not None and not set(files.EPOCHS) & set(written.content):
        raise Refusal(f"a file of {name} holds no epoch; leave --epoch out")
    files.write_pth(file, written.content)
    print(f"{file}: {run}, step {step}, as {name}\nloads: {written.loads}")
    for line in written.left_out:
        print(f"left out: {line}")
    return 0


if __name__ == "__main__":
    cli.run(main)
