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

from absl import app, flags, logging

from jaxequi import cli
from jaxequi.interop import files, formats, networks

_FILE = flags.DEFINE_string("file", None, "The file to be written.")
_FORMAT = flags.DEFINE_string("format", None, "Its format; by default told by the run's config.")
_BACKBONE = flags.DEFINE_bool("backbone", False, "Write the backbone alone.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
_EPOCH = flags.DEFINE_integer("epoch", 0, "The epoch at which their training would go on.")


def main(argv: list[str]) -> int:
    """Export the run of the command line."""
    logging.set_verbosity(logging.ERROR)
    try:
        if len(argv) != 2 or not _FILE.value:
            raise ValueError("give the folder of a run and --file=FILE.pth; --help says more")
        run, file = pathlib.Path(argv[1]), pathlib.Path(_FILE.value)
        step, config, variables = networks.load(run, _STEP.value)
        if _BACKBONE.value:
            config.method = None
        name = _FORMAT.value or formats.of_run(config)
        written = formats.find(name).write(config, variables, _EPOCH.value)
        if _EPOCH.present and "epoch" not in written.content:
            raise ValueError(f"a file of {name} holds no epoch; leave --epoch out")
        files.write_pth(file, written.content)
    except ValueError as error:
        return cli.refuse(str(error))
    print(f"{file}: {run}, step {step}, as {name}\nloads: {written.loads}")
    for line in written.left_out:
        print(f"left out: {line}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse)
