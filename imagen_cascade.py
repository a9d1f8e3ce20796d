"""What the commands `imagen` and `imagen-cascade` start: the module `imagen`, if it is this project's.

Another package may have put its own `imagen` in place of ours; then nothing inside ours could say so.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `imagen.cli.main`; exit with code 2 and one line if `imagen` is another package's."""
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
