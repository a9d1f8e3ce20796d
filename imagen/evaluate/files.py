"""Write and read arrays of features as safetensors files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from imagen.errors import UserError
from imagen.files import replacing
from imagen.tensors import save_tensors


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write `arrays` atomically. Raises UserError if the disk is full or not writable."""
    with replacing(path) as temporary:
        save_tensors(arrays, temporary, metadata)


def read_arrays(path: Path, names: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """Return the arrays `names` of a file, [`count`, D]. Raises UserError if it is damaged or lacks them."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and run the command again") from None
    for name in names:
        if name not in arrays or arrays[name].ndim != 2 or len(arrays[name]) != count:
            raise UserError(
                f"{path} does not have the features of {count:,} images; delete it and run the command again"
            )
    return arrays
