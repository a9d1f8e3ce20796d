"""Notice files of a source that changed after a part was built from them, by their size and modification time.

Only a source with a method `files_of` is checked. A downloaded one has none, because each machine of a cluster has its
own copies.
"""

import os
from pathlib import Path
from typing import Any

from imagen.data.sources.base import Part, Source


def file_states(source: Source, part: Part) -> list[str]:
    """Return the state of each file that a part is read from, for its report; [] if the source does not name them."""
    return [_state(path) for path in _files(source, part)]


def changed_file(source: Source, part: Part, report: dict[str, Any]) -> Path | None:
    """Return the first file that has changed, appeared or disappeared since the report was written; None without one.

    Also None for a report of an earlier version, which records no states.
    """
    before = report.get("source", "").split()
    pairs = zip(_files(source, part), before, strict=False)
    return next((path for path, state in pairs if _state(path) != state), None)


def _files(source: Source, part: Part) -> list[Path]:
    return source.files_of(part) if hasattr(source, "files_of") else []


def _state(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "-"
    return f"{status.st_size}@{int(status.st_mtime)}"  # in seconds, because archives and copies may lose fractions
