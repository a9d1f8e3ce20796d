"""Start the commands `imagen` and `imagen-cascade`, if the module `imagen` is this project's.

Another package may have overwritten the module `imagen`. Code inside the module could not report that.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `imagen.cli.main`. Exits with code 2 and a one-line message if `imagen` belongs to another package."""
    import imagen

    if getattr(imagen, "__title__", None) != "imagen-cascade":
        where = getattr(imagen, "__file__", None) or "an empty folder"
        print(
            f"imagen: the module `imagen` is another package's ({where}); "
            "run: pip uninstall imagen && pip install --force-reinstall --no-deps imagen-cascade",
            file=sys.stderr,
        )
        sys.exit(2)
    from imagen.cli import main as run

    run()
