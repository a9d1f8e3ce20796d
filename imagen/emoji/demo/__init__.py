"""Run `imagen demo`: data, training, sampling and a report on a small real data set, in minutes, on any machine.

DIR/octopus.png, DIR/pretrained.png  drawn by the weights that come with the package, before anything is trained
DIR/data        emoji on coloured backgrounds, at 64 and 256 pixels, with text embeddings
DIR/base        training run of the base           (a rerun goes on with it)
DIR/sr          training run of the super-resolution stage
DIR/cascade     both, ready to sample
DIR/index.html  what came of it: prompts never trained on, before and after, loss curves
DIR/sheet.png, DIR/summary.json

budget.py   measures the machine's throughput and chooses the amount of data and training
first.py    samples from the packaged weights
drawing.py  samples and scores held-out prompts
page.py     writes the HTML page
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from imagen.cascade import Cascade, assemble
from imagen.data.embed.encode import encode_shards
from imagen.devices import default_device
from imagen.emoji.dataset import PALETTE, build_emoji
from imagen.emoji.demo.budget import LOOKS, PROMPTS, VARIANTS, Budget, choose_budget
from imagen.emoji.demo.drawing import SampledImages, prompts_for, sample_images, untrained
from imagen.emoji.demo.first import draw_first
from imagen.emoji.demo.page import write_page
from imagen.emoji.demo.report import metrics, summarise
from imagen.emoji.presets import MINILM, emoji_256, emoji_mini_64
from imagen.errors import UserError
from imagen.files import read_json, write_json
from imagen.pictures import contact_sheet, write_png
from imagen.text.encoder import LazyEncoder
from imagen.train.console import duration
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks
from imagen.train.run import train_run

MINUTES = 10.0
FIRST_SHARE = 0.1  # of the time, at most, for pictures by the weights in the package
DATASET = "dataset.json"  # in DIR/data, when it is complete
Say = Callable[[str], None]


def run_demo(
    out: str | Path,
    *,
    minutes: float = MINUTES,
    objects: int | None = None,
    prompts: int = PROMPTS,
    pretrained: bool = True,
    device: str | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Look at the machine, build the data, train for what is left of `minutes`, draw and report; return summary.json.

    objects: of the data set (default: as many as this machine can learn in the time). prompts: held-out prompts to
    draw. pretrained: on the first call, begin with pictures by the weights that come with the package.

    Called again on the same folder it goes on training. Ctrl-C (or SIGTERM) ends the training, and so does a mistake
    in it; what was learned is drawn all the same, before the mistake is raised. Where the rest alone takes longer, it
    still trains for a quarter of `minutes`. UserError unless `minutes` is above 0, and for what the user can mend.
    """
    out, began = Path(out), time.monotonic()
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: the demo needs some time; the default is {MINUTES:g}")

    def left() -> float:
        return 60 * minutes - (time.monotonic() - began)

    ranks = Ranks(torch.device(device or default_device()))
    base, sr = emoji_mini_64(), emoji_256()
    say("looking at this machine: a few training steps of both networks")
    budget = choose_budget(minutes, base, sr, ranks.device, objects=objects or _objects(out), prompts=prompts)
    _announce(budget, minutes, out, say)

    if pretrained and not (out / "octopus.png").exists():
        draw_first(out, say, speed=budget.base, budget=FIRST_SHARE * 60 * minutes)
    say("1/4 data: OpenMoji drawings (CC BY-SA 4.0) on coloured backgrounds, captions, text embeddings")
    data = out / "data"
    build_emoji(data, sizes=(64, 256), limit_objects=budget.objects, variants=VARIANTS, centred=True)
    encode_shards(data, LazyEncoder(MINILM, str(ranks.device)))
    asked = prompts_for(budget)
    before = sample_images(_export(out / "base"), asked[: budget.shown], device=ranks.device) or untrained(
        base, budget, ranks
    )

    for_base, for_sr = budget.training(left())
    ended: UserError | bool = False  # why the training ended early, if it did
    for number, run, experiment, seconds in ((2, "base", base, for_base), (3, "sr", sr, for_sr)):
        if not ended:
            name = f"{experiment.name}: {'text -> 64' if run == 'base' else '64 -> 256'}"
            say(f"{number}/4 {name}, training for {duration(seconds)}")
            ended = _train(experiment, data, out / run, seconds, ranks, say)
    if isinstance(ended, UserError) and _export(out / "base") is None:
        raise ended  # nothing was learned that could be drawn

    say(f"4/4 drawing {len(asked)} prompts whose combination of object and colour was never trained on")
    cascade = _assembled(out)
    drawn = sample_images(cascade, asked, shown=budget.shown, device=ranks.device, seconds=max(left(), budget.drawing))
    assert drawn is not None
    summary = _report(out, cascade, drawn, before, budget, bool(ended), say)
    if isinstance(ended, UserError):
        raise ended
    return summary


def _announce(budget: Budget, minutes: float, out: Path, say: Say) -> None:
    """Say what is going to happen, and how long it takes."""
    training, _ = budget.training(60 * minutes - budget.data)
    images = budget.base.images_per_s * training
    say(f"{budget.machine}: {budget.base.images_per_s:.0f} training pictures per second")
    say(
        f"plan for {minutes:g} minutes: {budget.objects} objects on {len(PALETTE)} backgrounds; a base that sees about "
        f"{images:,.0f} pictures, {images / budget.objects:,.0f} of each object; a super-resolution stage; "
        f"{budget.prompts} pictures"
    )
    if images < LOOKS * budget.objects / 2:
        say(f"objects need about {LOOKS:,} looks each to be recognised: expect less, or take more minutes")
    end = time.strftime("%H:%M", time.localtime(time.time() + 60 * minutes))
    say(f"it ends at about {end} with {out / 'index.html'}; Ctrl-C ends the training sooner, and draws")


def _objects(out: Path) -> int | None:
    """How many the data of an earlier call have; None without such data."""
    described = out / "data" / DATASET
    return read_json(described)["arguments"]["limit_objects"] if described.exists() else None


def _train(experiment: Experiment, data: Path, run: Path, seconds: float, ranks: Ranks, say: Say) -> UserError | bool:
    """Train a stage for so long; return what went wrong, or whether a signal ended it."""
    try:
        return train_run(experiment, data, run, minutes=seconds / 60, ranks=ranks, report=say).signalled
    except UserError as error:
        return error


def _export(run: Path) -> Cascade | None:
    """What an earlier call trained."""
    folder = run / "export"
    return Cascade.load(folder) if (folder / "cascade.json").exists() else None


def _assembled(out: Path) -> Cascade:
    """The two runs as one cascade, in place of that of an earlier call; the base alone where the other is not there."""
    folder, fresh = out / "cascade", out / ".cascade"
    shutil.rmtree(fresh, ignore_errors=True)
    assemble([run for run in (out / "base", out / "sr") if (run / "export").exists()], fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return Cascade.load(folder)


def _report(
    out: Path,
    cascade: Cascade,
    drawn: SampledImages,
    before: SampledImages,
    budget: Budget,
    interrupted: bool,
    say: Say,
) -> dict[str, Any]:
    summary = summarise(out, cascade, drawn, budget)
    captions = [("" if row["right"] else "(wrong) ") + row["prompt"] for row in summary["prompts"]]
    write_png(out / "sheet.png", contact_sheet(drawn.small, captions, columns=8, cell=128))
    write_json(out / "summary.json", summary)
    write_page(out / "index.html", summary, before, drawn, metrics(out / "base"), metrics(out / "sr"))
    objects = summary["object_accuracy"]
    recognised = "" if objects is None else f"the object can be recognised in {objects:.0%} and "
    say(f"{recognised}the background is right in {summary['colour_accuracy']:.0%} of {len(drawn.small)} pictures")
    say(f"see {out / 'index.html'} (and {out / 'sheet.png'})")
    if interrupted:
        say(f"the training was interrupted; `imagen demo --out {out}` goes on with it")
        return summary
    prompt = drawn.prompts[0].prompt
    say(f"next: `imagen demo --out {out}` trains on, for as long again;")
    say(f'      `imagen sample {out / "cascade"} "{prompt}" --out pictures` draws your own')
    return summary
