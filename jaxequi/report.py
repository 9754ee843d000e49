"""What runs say: the report of one, or many of them side by side.

    python -m jaxequi.report RUN                       figures and report.html in the run's folder
    python -m jaxequi.report RUN RUN ... [--out=DIR]   one table with figures (DIR: runs/table)
    python -m jaxequi.report RUN ... --markdown=FILE   the table as a page; each row has its config,
                                                       seeds, commit, date, hardware, command

Reads what the runs left behind and computes nothing that they did not.
"""

from __future__ import annotations

import pathlib

from absl import flags

from jaxequi import cli

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "runs/table", "Folder of the table of several runs.", flag_values=FLAGS
)
_MARKDOWN = flags.DEFINE_string(
    "markdown", None, "Page of results to write, and nothing else.", flag_values=FLAGS
)


@cli.program
def main(argv: list[str]) -> int:
    """Write the report of the run on the command line, or the table of several."""
    folders = [pathlib.Path(word) for word in cli.arguments(argv, FLAGS, ["RUN..."], __doc__)]
    if _MARKDOWN.value:
        from jaxequi.runs import results

        print(results.write(folders, pathlib.Path(_MARKDOWN.value)))
    elif len(folders) > 1:
        from jaxequi.runs import comparison  # reads checkpoints, which one report need not

        print(comparison.write(folders, pathlib.Path(_OUT.value)))
    else:
        from jaxequi.runs import report  # matplotlib, for which no --help waits

        print(report.write(folders[0]))
    return 0


if __name__ == "__main__":
    cli.run(main)
