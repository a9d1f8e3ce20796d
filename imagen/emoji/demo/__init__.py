"""Run `imagen demo`: data, training, sampling and a report on a small real data set, in minutes, on any machine.

DIR/octopus.png, DIR/pretrained.png  images from the packaged weights, sampled before training
DIR/data        emoji on coloured backgrounds, at 64 and 256 pixels, with text embeddings
DIR/base        training run of the base model; a second call resumes it
DIR/sr          training run of the super-resolution stage
DIR/cascade     both stages, ready to sample
DIR/index.html  report: held-out prompts before and after training, loss curves
DIR/sheet.png   images of all held-out prompts
DIR/summary.json

budget.py   measures the machine's throughput and chooses the amount of data and training
first.py    samples from the packaged weights
drawing.py  samples and scores held-out prompts
page.py     writes the HTML page
report.py   computes summary.json
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
from imagen.emoji.demo.budget import PROMPTS, VARIANTS, VIEWS_PER_OBJECT, Budget, choose_budget
from imagen.emoji.demo.drawing import SampledImages, prompts_for, sample_images, sample_untrained
from imagen.emoji.demo.first import sample_packaged
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
FIRST_SHARE = 0.1  # maximum fraction of the time for images from the packaged weights
DATASET = "dataset.json"  # in DIR/data once the data set is complete
Report = Callable[[str], None]


def run_demo(
    out: str | Path,
    *,
    minutes: float = MINUTES,
    objects: int | None = None,
    prompts: int = PROMPTS,
    pretrained: bool = True,
    device: str | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Build data, train for the rest of `minutes`, sample held-out prompts and write a report.

    objects: number of objects in the data set (default: as many as this machine can learn in the time).
    prompts: number of held-out prompts to sample.
    pretrained: on the first call, begin with images from the packaged weights.
    report: receives lines of progress.

    Returns the content of summary.json. A second call on the same folder resumes training. Ctrl-C, SIGTERM or a
    UserError ends training early; the images are sampled from the latest weights, and then the error is raised. At
    least a quarter of `minutes` is spent on training, even if the other steps take longer than planned. Raises
    UserError if `minutes` is not above 0.
    """
    out, start = Path(out), time.monotonic()
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: must be above 0; the default is {MINUTES:g}")

    def left() -> float:
        return 60 * minutes - (time.monotonic() - start)

    ranks = Ranks(torch.device(device or default_device()))
    base, sr = emoji_mini_64(), emoji_256()
    report("measuring this machine: a few training steps of both networks")
    budget = choose_budget(minutes, base, sr, ranks.device, objects=objects or _existing_objects(out), prompts=prompts)
    _announce(budget, minutes, out, report)

    if pretrained and not (out / "octopus.png").exists():
        sample_packaged(out, report, device=ranks.device, speed=budget.base, budget=FIRST_SHARE * 60 * minutes)
    report("1/4 data: OpenMoji drawings (CC BY-SA 4.0) on coloured backgrounds, captions, text embeddings")
    data = out / "data"
    build_emoji(data, sizes=(64, 256), limit_objects=budget.objects, variants=VARIANTS, centred=True)
    encode_shards(data, LazyEncoder(MINILM, str(ranks.device)))
    heldout = prompts_for(budget)
    before = sample_images(_export(out / "base"), heldout[: budget.shown], device=ranks.device)
    before = before or sample_untrained(base, budget, ranks)

    base_seconds, sr_seconds = budget.training(left())
    ended: UserError | bool = False  # True or the error if training ended early
    for number, run, experiment, seconds in ((2, "base", base, base_seconds), (3, "sr", sr, sr_seconds)):
        if not ended:
            name = f"{experiment.name}: {'text -> 64' if run == 'base' else '64 -> 256'}"
            report(f"{number}/4 {name}, training for {duration(seconds)}")
            ended = _train(experiment, data, out / run, seconds, ranks, report)
    if isinstance(ended, UserError) and _export(out / "base") is None:
        raise ended  # there are no weights to sample from

    report(f"4/4 sampling {len(heldout)} prompts with combinations of object and colour that were held out")
    cascade = _assemble(out)
    seconds = max(left(), budget.sampling)
    after = sample_images(cascade, heldout, shown=budget.shown, device=ranks.device, seconds=seconds)
    assert after is not None
    summary = _write_report(out, cascade, after, before, budget, bool(ended), report)
    if isinstance(ended, UserError):
        raise ended
    return summary


def _announce(budget: Budget, minutes: float, out: Path, report: Report) -> None:
    """Report what the demo will do and how long it will take."""
    training, _ = budget.training(60 * minutes - budget.data)
    images = budget.base.images_per_s * training
    report(f"{budget.machine}: {budget.base.images_per_s:.0f} training images per second")
    report(
        f"plan for {minutes:g} minutes: {budget.objects} objects on {len(PALETTE)} backgrounds; a base model trained "
        f"on about {images:,.0f} images, {images / budget.objects:,.0f} per object; a super-resolution stage; "
        f"{budget.prompts} samples"
    )
    if images < VIEWS_PER_OBJECT * budget.objects / 2:
        report(
            f"an object needs about {VIEWS_PER_OBJECT:,} training images to become recognisable: "
            "expect worse images, or use more minutes"
        )
    end = time.strftime("%H:%M", time.localtime(time.time() + 60 * minutes))
    report(f"it ends at about {end} with {out / 'index.html'}; Ctrl-C ends training early and samples then")


def _existing_objects(out: Path) -> int | None:
    """Return the number of objects in the data of an earlier call, or None if there is none."""
    described = out / "data" / DATASET
    return read_json(described)["arguments"]["limit_objects"] if described.exists() else None


def _train(
    experiment: Experiment, data: Path, run: Path, seconds: float, ranks: Ranks, report: Report
) -> UserError | bool:
    """Train a stage for `seconds`; return the UserError that ended it, or whether a signal did."""
    try:
        return train_run(experiment, data, run, minutes=seconds / 60, ranks=ranks, report=report).signalled
    except UserError as error:
        return error


def _export(run: Path) -> Cascade | None:
    """Return the exported cascade of a run, or None if there is none."""
    folder = run / "export"
    return Cascade.load(folder) if (folder / "cascade.json").exists() else None


def _assemble(out: Path) -> Cascade:
    """Assemble the exported runs, replacing an earlier cascade; without a super-resolution run, the base only."""
    folder, temporary = out / "cascade", out / ".cascade"
    shutil.rmtree(temporary, ignore_errors=True)
    assemble([run for run in (out / "base", out / "sr") if (run / "export").exists()], temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return Cascade.load(folder)


def _write_report(
    out: Path,
    cascade: Cascade,
    after: SampledImages,
    before: SampledImages,
    budget: Budget,
    interrupted: bool,
    report: Report,
) -> dict[str, Any]:
    """Write sheet.png, summary.json and index.html, and report the scores; return the summary."""
    summary = summarise(out, cascade, after, budget)
    captions = [("" if row["right"] else "(wrong) ") + row["prompt"] for row in summary["prompts"]]
    write_png(out / "sheet.png", contact_sheet(after.small, captions, columns=8, cell=128))
    write_json(out / "summary.json", summary)
    write_page(out / "index.html", summary, before, after, metrics(out / "base"), metrics(out / "sr"))
    objects = summary["object_accuracy"]
    recognised = "" if objects is None else f"the object is recognised in {objects:.0%} and "
    report(f"{recognised}the background is correct in {summary['colour_accuracy']:.0%} of {len(after.small)} images")
    report(f"see {out / 'index.html'} (and {out / 'sheet.png'})")
    if interrupted:
        report(f"training was interrupted; `imagen demo --out {out}` resumes it")
        return summary
    prompt = after.prompts[0].prompt
    report(f"next: `imagen demo --out {out}` trains for the same time again;")
    report(f'      `imagen sample {out / "cascade"} "{prompt}" --out samples` samples your own prompts')
    return summary
