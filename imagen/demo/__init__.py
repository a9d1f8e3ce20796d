"""`imagen demo`: the whole path on a small real data set, on a CPU, in minutes.

DIR/octopus.png, DIR/pretrained.png  drawn by the weights that come with the package, before anything is trained
DIR/data        emoji on coloured backgrounds, at 64 and 256 pixels, with text embeddings
DIR/emoji_64    training run of the base           (a rerun goes on with it)
DIR/emoji_256   training run of the super-resolution stage
DIR/cascade     both, ready to sample
DIR/index.html  what came of it: prompts never trained on, pictures, loss curves
DIR/sheet.png, DIR/summary.json
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen.cascade import Cascade, assemble
from imagen.config import Experiment
from imagen.data.emoji import OBJECTS, HeldoutPrompt, build_emoji, heldout_prompts
from imagen.data.encode import encode_shards
from imagen.demo.first import draw_first
from imagen.demo.page import write_page
from imagen.errors import UserError
from imagen.evaluate.colour import background_colour
from imagen.files import read_json, write_json
from imagen.models.text import LazyEncoder
from imagen.pictures import contact_sheet, write_png
from imagen.presets.emoji import MINILM, emoji_64, emoji_256
from imagen.run import train_run

PROMPTS = 64  # held-out combinations of object and colour that are drawn and judged
SHOWN = 16  # of them, enlarged to 256
DRAWING = 1.2  # minutes kept back for it
SR_SHARE = 0.2  # of the training time; the base, which reads the text, gets the rest
Say = Callable[[str], None]


def run_demo(
    out: str | Path,
    *,
    minutes: float = 15.0,
    objects: int | None = OBJECTS,
    prompts: int = PROMPTS,
    pretrained: bool = True,
    say: Say = print,
) -> dict[str, Any]:
    """Build the data, train for what is left of `minutes`, draw, and report; return what summary.json says.

    objects: of the data set (None: all). prompts: held-out combinations of object and colour to draw.
    pretrained: on the first call, begin with pictures by the weights that come with the package.

    Called again on the same folder it goes on training. UserError unless `minutes` is above 0. Where the
    data alone take longer, it still trains for a quarter of `minutes`.
    """
    out, began = Path(out), time.monotonic()
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: the demo needs some time; the default is 15")

    def left() -> float:
        return minutes - (time.monotonic() - began) / 60

    if pretrained and not (out / "octopus.png").exists():
        draw_first(out, say)
    say("1/4 data: OpenMoji drawings (CC BY-SA 4.0) on coloured backgrounds, captions, text embeddings")
    data = out / "data"
    build_emoji(data, sizes=(64, 256), limit_objects=objects)
    encode_shards(data, LazyEncoder(MINILM))

    training = max(left() - min(DRAWING, minutes / 4), minutes / 4)  # a tiny budget still trains a little
    say(f"2/4 super-resolution 64 -> 256: training for {training * SR_SHARE:.1f} minutes")
    _train(emoji_256(), data, out / "emoji_256", minutes=training * SR_SHARE, say=say)
    say(f"3/4 base, text -> 64: training for {training * (1 - SR_SHARE):.1f} minutes")
    _train(emoji_64(), data, out / "emoji_64", minutes=training * (1 - SR_SHARE), say=say)

    say(f"4/4 drawing {prompts} prompts whose combination of object and colour was never trained on")
    cascade = _assembled(out)
    asked = heldout_prompts(prompts, limit_objects=objects)
    small = cascade.sample([p.prompt for p in asked], seeds=list(range(prompts)), stages=1, batch_size=16)
    shown = range(min(SHOWN, prompts))
    large = cascade.sample([asked[i].prompt for i in shown], seeds=list(shown), start=[small[i] for i in shown])
    summary = _summarise(out, cascade, asked, small)
    captions = [("" if row["right"] else "(wrong) ") + row["prompt"] for row in summary["prompts"]]
    write_png(out / "sheet.png", contact_sheet(small, captions, columns=8, cell=128))
    write_json(out / "summary.json", summary)
    write_page(out / "index.html", summary, small, large, _metrics(out / "emoji_64"), _metrics(out / "emoji_256"))

    say(f"the background has the colour of the prompt in {summary['colour_accuracy']:.0%} of {prompts} pictures")
    say(f"see {out / 'index.html'} (and {out / 'sheet.png'})")
    say(f"next: `imagen demo --out {out}` trains on for another {minutes:g} minutes;")
    say(f'      `imagen sample {out / "cascade"} "a red apple on a blue background" --out pictures` draws your own')
    return summary


def _train(experiment: Experiment, data: Path, run: Path, *, minutes: float, say: Callable[[str], None]) -> None:
    """A stage, for so long. KeyboardInterrupt if a signal ended it: whoever stops the training stops the demo."""
    if train_run(experiment, data, run, minutes=minutes, say=say).signalled:
        raise KeyboardInterrupt


def _assembled(out: Path) -> Cascade:
    """The two runs as one cascade, in place of that of an earlier call."""
    folder, fresh = out / "cascade", out / ".cascade"
    shutil.rmtree(fresh, ignore_errors=True)
    assemble([out / "emoji_64", out / "emoji_256"], fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return Cascade.load(folder)


def _summarise(out: Path, cascade: Cascade, asked: list[HeldoutPrompt], pictures: list[Image.Image]) -> dict[str, Any]:
    """The state after this call, and those after the calls before it under "history"."""
    rows: list[dict[str, Any]] = []
    for prompt, picture in zip(asked, pictures, strict=True):
        found = background_colour(np.array(picture))
        rows.append({"prompt": prompt.prompt, "wanted": prompt.colour, "found": found, "right": found == prompt.colour})
    base, sr = _metrics(out / "emoji_64"), _metrics(out / "emoji_256")
    state = {
        "images": cascade.stages[0].info["images"],
        "sr_images": cascade.stages[1].info["images"],
        "colour_accuracy": sum(row["right"] for row in rows) / len(rows),
        "conditional_gap": _last(base, "conditional_gap"),
        "loss": _last(base, "loss"),
        "sr_loss": _last(sr, "loss"),
        "images_per_s": float(np.median([row["images_per_s"] for row in base])) if base else None,
    }
    history = read_json(out / "summary.json")["history"] if (out / "summary.json").exists() else []
    return {**state, "data": "OpenMoji, CC BY-SA 4.0", "history": [*history, state], "prompts": rows}


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's log; none if it was too short for one."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _last(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if key in row), None)
