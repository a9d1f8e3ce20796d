"""Write safetensors files.

The writer of the safetensors package is unsuitable for three reasons: it writes to a temporary file of its own, which
remains if the process is killed; only the owner may read the result; and the order of metadata is not deterministic.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


def save_tensors(
    tensors: Mapping[str, np.ndarray | Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whose bytes depend only on the arguments.

    Not atomic: use it with the path of `imagen.files.replacing`. Raises OSError as `open` and `write` do.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    # Descending item sizes and a header of a multiple of 8 bytes align every tensor.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        dtype = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, tensor in ordered:
            file.write(_bytes(tensor))


def _bytes(tensor: np.ndarray | Tensor) -> memoryview:
    if isinstance(tensor, Tensor):
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
