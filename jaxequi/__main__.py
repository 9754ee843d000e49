"""Say which programs there are: python -m jaxequi"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent


def programs() -> Iterator[tuple[str, str]]:
    """Name of each program of the package, and what its first line says; none is imported."""
    for file in sorted(ROOT.rglob("*.py")):
        text = file.read_text()
        if "\n    cli.run(main)\n" in text:
            name = ".".join(("jaxequi", *file.relative_to(ROOT).with_suffix("").parts))
            said = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
            yield name.removesuffix(".__main__"), said.partition(": ")[0].rstrip(".")


def main() -> None:
    """Print them."""
    found = dict(programs())
    width = max(map(len, found))
    print("Programs, each with --help:\n")
    for name, said in found.items():
        print(f"  python -m {name:<{width}}  {said}")


if __name__ == "__main__":
    main()
