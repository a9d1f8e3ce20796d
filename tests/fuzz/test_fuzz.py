"""Run commands on thousands of mutated inputs: each must succeed, or end with one line and exit code 2.

    pytest tests/fuzz -q                                   # the first 40 % of 2,000 inputs
    pytest tests/fuzz -q -m slow                           # the rest
    FUZZ_INPUTS=100000 FUZZ_SEED=7 pytest tests/fuzz -q    # more inputs, from another seed
    FUZZ_INPUTS=20000 pytest tests/fuzz -q -k tars         # only one kind of input

A failing input is saved with the command that reproduces it; the failure message gives its path.
"""

import faulthandler
import io
import json
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from cascades import WIDTH, cascade
from mutations import changed_bytes, changed_json, changed_lines, changed_png, changed_tar, chunks, deep_text, png
from PIL import Image
from running import MAX_SECONDS, bounded_memory, find_fault

from imagen.cascade import Cascade, texts
from imagen.pictures import readable_formats

# Number of inputs of each kind, out of 2,000.
SHARES = {"cascade": 350, "config": 350, "metadata": 350, "prompts": 250, "tables": 250, "tars": 250, "pictures": 200}
INPUTS, SEED = int(os.environ.get("FUZZ_INPUTS", "2000")), int(os.environ.get("FUZZ_SEED", "0"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))  # number of the first input; FUZZ_ONLY repeats a single one
ONLY = os.environ.get("FUZZ_ONLY")
MAX_FAILURES = 10  # failures of one kind, after which the test stops

Make = Callable[[Random, Path, "Base"], list[object]]


class LengthTokenEncoder:
    """Encodes a prompt as one token of its length."""

    model = None

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [torch.full((1, WIDTH), len(prompt) / 100) for prompt in prompts]


class Base:
    """Valid inputs that mutations start from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cascade = folder / "cascade"
        cascade().save(self.cascade)
        self.manifest = json.loads((self.cascade / "cascade.json").read_text())
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        self.picture = Image.fromarray(pixels.repeat(4, 0).repeat(4, 1))
        self.pictures = dict(self._encoded())
        Cascade.load(self.cascade)
        assert find_fault(["sample", self.cascade, "", "--steps", 1, "--stages", 1, "--out", folder / "made"]) is None
        self.made = (folder / "made" / "0000.png").read_bytes()
        (text,) = [body for kind, body in chunks(self.made) if kind == b"iTXt"]
        self.metadata = json.loads(text.split(b"\0\0\0\0\0", 1)[1])

    def _encoded(self) -> Iterator[tuple[str, bytes]]:
        for format in sorted(readable_formats()):
            for image in (self.picture, self.picture.convert("L"), self.picture.convert("P")):
                file = io.BytesIO()
                try:
                    image.save(file, format)
                except (OSError, KeyError, ValueError, NotImplementedError):  # Pillow cannot write this format or mode
                    continue
                yield f"{format}-{image.mode}.{format.lower()}", file.getvalue()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Iterator[Base]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "load_text_encoder", lambda *_arguments: LengthTokenEncoder())
        patch.setattr(texts, "quantize_int8", lambda model: None)
        yield Base(tmp_path_factory.mktemp("fuzz"))
    torch.set_num_threads(threads)


# --- kinds of inputs: each function writes one to a new folder and returns the command that reads it ---


def of_cascade(rng: Random, folder: Path, base: Base) -> list[object]:
    (folder / "c").mkdir()
    for file in base.cascade.iterdir():
        if file.name != "cascade.json":
            os.link(file, folder / "c" / file.name)
    data = changed_json(rng, base.manifest) if rng.random() < 0.95 else deep_text(rng)
    (folder / "c" / "cascade.json").write_bytes(data)
    (folder / "p.png").write_bytes(png([part for part in chunks(base.made) if part[0] != b"iTXt"]))
    return rng.choice(
        [
            ["sample", folder / "c", "", "--steps", 1, "--out", folder / "o"],
            ["upscale", folder / "c", folder / "p.png", "--steps", 1, "--out", folder / "o"],
            ["assemble", folder / "c", "--out", folder / "o"],
            ["convert", "diffusers", folder / "c", "--out", folder / "o"],
        ]
    )


def of_config(rng: Random, folder: Path, base: Base) -> list[object]:
    """Mutate a field of a config on the command line, or the config.json of a run."""
    from imagen.jsonconfig import to_json
    from imagen.presets import preset

    config = to_json(preset("debug_256"))
    if rng.random() < 0.7:
        path, value = [], config
        while isinstance(value, dict | list) and value and (not path or rng.random() < 0.85):
            key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
            path.append(str(key))
            value = value[key]
        text = deep_text(rng) if rng.random() < 0.05 else changed_json(rng, [value])[1:-1]
        # Arguments cannot contain zero bytes.
        given = text[:100_000].replace(b"\0", b"").decode("utf-8", "surrogateescape")
        return ["config", "debug_256", f"--{'.'.join(path)}={given}"]
    run = folder / "run"
    (run / "export").mkdir(parents=True)
    (run / "config.json").write_bytes(changed_json(rng, config))
    metrics = b'{"step": 2, "images": 8, "loss": 0.5}\n{"step": 4, "images": 16, "loss": 0.4}\n'
    (run / "metrics.jsonl").write_bytes(changed_lines(rng, metrics))
    return rng.choice(
        [
            ["compare", run, "--out", folder / "curves.png"] if rng.random() < 0.1 else ["export", run, "--out", "o"],
            ["sample", run, "", "--out", folder / "o"],
        ]
    )


def of_metadata(rng: Random, folder: Path, base: Base) -> list[object]:
    data = changed_json(rng, base.metadata) if rng.random() < 0.95 else deep_text(rng)
    parts = [
        (kind, b"imagen\0\0\0\0\0" + data) if kind == b"iTXt" else (kind, body) for kind, body in chunks(base.made)
    ]
    (folder / "p.png").write_bytes(png(parts))
    return ["sample", base.cascade, "--from", folder / "p.png", "--out", folder / "o"]


def of_prompts(rng: Random, folder: Path, base: Base) -> list[object]:
    rows = [{"prompt": "a red cat", "seed": 3}, {"prompt": "", "negative": "blue"}, {"prompt": "Ein Café, 猫"}]
    kind = rng.choice(("txt", "jsonl", "json", "csv", "tsv", "md", ""))
    if kind == "json":
        data = changed_json(rng, rows) if rng.random() < 0.9 else deep_text(rng)
    elif kind == "jsonl":
        data = b"\n".join(changed_json(rng, row) if rng.random() < 0.5 else json.dumps(row).encode() for row in rows)
    else:
        mark = {"csv": ",", "tsv": "\t"}.get(kind)
        lines = [row["prompt"] for row in rows]
        if mark:
            lines = [mark.join(("prompt", "seed", "negative")), *(f'"{line}"{mark}{mark}x' for line in lines)]
        data = "\n".join(lines).encode()
    data = changed_lines(rng, data) if rng.random() < 0.7 else data
    file = folder / (f"p.{kind}" if kind else "p")
    file.write_bytes(data)
    return ["sample", base.cascade, "--prompts", file, "--steps", 1, "--stages", 1, "--out", folder / "o"]


def of_tables(rng: Random, folder: Path, base: Base) -> list[object]:
    (folder / "t").mkdir()
    for number in range(4):
        base.picture.rotate(90 * number).save(folder / "t" / f"{number}.png")
    kind = rng.choice(("csv", "tsv", "jsonl"))
    if kind == "jsonl":
        rows = [{"file": f"{number}.png", "caption": f"picture {number}"} for number in range(4)]
        data = b"\n".join(changed_json(rng, row) if rng.random() < 0.3 else json.dumps(row).encode() for row in rows)
    else:
        mark = "," if kind == "csv" else "\t"
        cells = [("file", "caption"), *((f"{number}.png", f'"picture {number}"') for number in range(4))]
        data = "\n".join(mark.join(row) for row in cells).encode()
    (folder / "t" / f"pairs.{kind}").write_bytes(changed_lines(rng, data))
    more = ["--max-rejected", 1] if rng.random() < 0.5 else []
    return ["data", "build", folder / "t" / f"pairs.{kind}", "--out", folder / "o", "--workers", 1, *more]


def of_tars(rng: Random, folder: Path, base: Base) -> list[object]:
    (folder / "t").mkdir()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for number in range(4):
            picture = base.pictures[rng.choice(("PNG-RGB.png", "JPEG-RGB.jpeg"))]
            for name, data in (("png", picture), ("txt", f"picture {number}".encode()), ("json", b'{"key": 1}')):
                long = "long/" * 30 if rng.random() < 0.05 else ""
                info = tarfile.TarInfo(f"{long}{number:03d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "t" / "00000.tar").write_bytes(changed_tar(rng, file.getvalue()))
    more = ["--max-rejected", 1, "--workers", 1]
    return rng.choice(
        [
            ["data", "build", folder / "t", *more],
            ["data", "build", folder / "t", "--copy", "--out", folder / "o", *more],
            ["data", "inspect", folder / "t"],
        ]
    )


def of_pictures(rng: Random, folder: Path, base: Base) -> list[object]:
    (folder / "t").mkdir()
    name = rng.choice(sorted(base.pictures))
    data = base.pictures[name]
    data = changed_png(rng, data) if name.startswith("PNG") and rng.random() < 0.7 else changed_bytes(rng, data)
    (folder / "t" / name).write_bytes(data)
    (folder / "t" / f"{name.rpartition('.')[0]}.txt").write_text("a cat")
    file, sample = folder / "t" / name, ["sample", base.cascade, "", "--steps", 1, "--stages", 1, "--out", folder / "o"]
    return rng.choice(
        [
            ["upscale", base.cascade, file, "--steps", 1, "--scale", 4, "--out", folder / "o"],
            [*sample, "--init", file],
            [*sample, "--init", base.folder / "made" / "0000.png", "--mask", file],
            ["data", "build", folder / "t", "--out", folder / "o", "--workers", 1, "--max-rejected", 1],
        ]
    )


PARTS: dict[str, Make] = {
    name.removeprefix("of_"): function for name, function in list(globals().items()) if name.startswith("of_")
}


@pytest.mark.parametrize("rest", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "rest"])
@pytest.mark.parametrize("part", SHARES)
def test_mutated_inputs_succeed_or_are_user_errors(part: str, rest: bool, base: Base, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = max(INPUTS * SHARES[part] // sum(SHARES.values()), 1)
    middle = FIRST + max(2 * count // 5, 1)
    numbers = range(middle, FIRST + count) if rest else range(FIRST, middle)
    if ONLY is not None:
        numbers = [int(ONLY)]
    failures = []
    with bounded_memory():
        for number in numbers:
            folder = tmp_path / str(number)
            folder.mkdir()
            arguments = PARTS[part](Random(f"{SEED} {part} {number}"), folder, base)
            # A hang in C code ignores the alarm. This ends the process; the folder of the input remains.
            faulthandler.dump_traceback_later(3 * MAX_SECONDS, exit=True)
            wrong = find_fault(arguments)
            faulthandler.cancel_dump_traceback_later()
            if wrong is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                failures.append(f"{_save_failure(part, number, folder, arguments)}\n{wrong}")
            if len(failures) == MAX_FAILURES:
                break
    assert not failures, f"{len(failures)} of {part}:\n\n" + "\n\n".join(failures)


def _save_failure(part: str, number: int, folder: Path, arguments: list[object]) -> str:
    """Move a failing input to a permanent folder, and return the command that reproduces it."""
    kept = Path(os.environ.get("FUZZ_KEEP", tempfile.gettempdir())) / f"imagen-fuzz-{SEED}-{part}-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(folder, kept)
    command = shlex.join(["imagen", *(str(each).replace(str(folder), str(kept)) for each in arguments)])
    again = f"FUZZ_SEED={SEED} FUZZ_ONLY={number} pytest tests/fuzz -q -k {part}"
    (kept / "repeat.txt").write_text(f"{again}\n{command}\n", encoding="utf-8", errors="backslashreplace")
    return f"{again}\n  input: {kept}; {command[:300]}"
