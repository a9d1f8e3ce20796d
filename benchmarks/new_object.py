"""Teach the packaged emoji base an object that it has never seen, from 20 drawings, and measure what it then knows.

    python benchmarks/new_object.py --out DIR [--object teapot] [--minutes 10] [--sheets docs/images]

Runs `imagen subject` (the command is printed) on 20 drawings of an OpenMoji that is none of the packaged 96, with class
images of the 96 that the base generates itself; then samples prompts of the new object, and the held-out prompts of the
old ones, before and after. Old objects are recognised by the packaged detector. It knows only the 96, so the new one is
recognised by a linear classifier of 97 objects on the detector's features, fitted to drawings with noise; its accuracy
on other drawings is printed, too. `--minutes` bounds training, and the time of everything before sampling is reported.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from imagen.cascade import Cascade
from imagen.emoji.dataset import compose, heldout_colour
from imagen.emoji.evaluation import scores
from imagen.emoji.openmoji import Emoji
from imagen.emoji.openmoji_suite import openmoji_suite
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.recogniser import Recogniser, load_recogniser, to_input
from imagen.emoji.single import OBJECTS, objects
from imagen.files import write_json
from imagen.pictures import contact_sheet, write_png

DRAWINGS, PRIOR, PROMPTS = 20, 96, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--object", default="teapot", help="an OpenMoji that is none of the 96")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training (default: 7)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the LoRA (default: 1)")
    parser.add_argument("--n", type=int, default=64, help="held-out prompts of old objects")
    parser.add_argument("--sheets", type=Path, help="folder for the sheets before and after")
    parser.add_argument("fields", nargs=argparse.REMAINDER, help="after --: fields for `imagen subject`")
    options = parser.parse_args()
    new = next(emoji for emoji in objects(None)[OBJECTS:] if emoji.name == options.object)
    make_drawings(new, options.out / "drawings")
    prior = options.out / "prior.txt"
    prior.write_text("\n".join(prior_prompts()) + "\n")
    command = ["subject", options.out / "drawings", "--init", "emoji#64", "--prior", prior, "--prior-count", PRIOR]
    command += ["--out", options.out / "run", "--minutes", options.minutes]
    command += [
        *("--train.steps", 100_000, "--train.batch_size", 16, "--train.schedule", '{"shift_reference": 8}'),
        *("--train.sample_every", 0, "--train.checkpoint_every", 1000, "--data.workers", 0),
        *(field for field in options.fields if field != "--"),
    ]
    words = [str(word) for word in command]
    print("imagen", " ".join(words), flush=True)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "imagen", *words], check=True)
    seconds = time.monotonic() - began

    model = Cascade.load("emoji", stages=1)
    model.load_lora(options.out / "run" / "lora.safetensors", name="new")
    recogniser, probe = load_recogniser(), Probe(new)
    found: dict[str, Any] = {"object": new.name, "seconds": round(seconds), "probe": probe.accuracy()}
    prompts = test_prompts(new)
    for name, lora in (("before", {}), ("after", {"new": options.weight})):
        images = model.sample(prompts, seeds=list(range(len(prompts))), lora=lora, batch_size=16)
        found[f"new {name}"] = sum(each == new.name for each in probe.names_of(images)) / len(images)
        write_png(
            (options.sheets or options.out) / f"finetune-{name}.png",
            contact_sheet(images[:24], prompts[:24], columns=8),
        )
    whole = Cascade.load(options.out / "run")
    for name, cascade in (("before", model), ("after", whole)):
        (row,) = scores(cascade, recogniser, openmoji_suite(recogniser, options.n))
        found[f"old {name}"] = row["single"]
    write_json(options.out / "new_object.json", found)
    print(json.dumps(found, indent=2))


def make_drawings(new: Emoji, folder: Path) -> None:
    """Write DRAWINGS pictures of the object with their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = [colour for colour in PALETTE if colour != heldout_colour(new)]
    for number in range(DRAWINGS):
        picture = compose(new, colours[number % len(colours)], number // len(colours))
        (folder / f"{picture.key}.png").write_bytes(picture.render(64))
        (folder / f"{picture.key}.txt").write_text(picture.caption)


def prior_prompts() -> list[str]:
    """Return a caption of each old object in the data's words, on a colour that its training had."""
    rng = random.Random(0)
    prompts = []
    for variant in range(PRIOR // OBJECTS):
        for emoji in objects(OBJECTS):
            colours = [colour for colour in PALETTE if colour != heldout_colour(emoji)]
            prompts.append(compose(emoji, rng.choice(colours), variant).caption)
    return prompts


def test_prompts(new: Emoji) -> list[str]:
    """Return captions of the new object on every colour, the one without a drawing included."""
    return [
        compose(new, colour, 100 + variant).caption for variant in range(PROMPTS // len(PALETTE)) for colour in PALETTE
    ]


class Probe:
    """A linear classifier of the 96 objects and a new one, on the features of the packaged detector at the object."""

    def __init__(self, new: Emoji):
        self.recogniser: Recogniser = load_recogniser()
        self.classes = [*objects(OBJECTS), new]
        x_NC, y_N = self._drawings(range(200, 203), times_new=8)
        self.mean, self.std = x_NC.mean(0), x_NC.std(0) + 1e-6
        torch.manual_seed(0)
        self.layer = nn.Linear(x_NC.shape[1], len(self.classes))
        optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.02, weight_decay=0.01)
        for _ in range(400):
            optimizer.zero_grad()
            F.cross_entropy(self._logits(x_NC), y_N).backward()
            optimizer.step()

    @torch.no_grad()
    def names_of(self, images: list[Image.Image]) -> list[str]:
        return [self.classes[index].name for index in self._logits(self._features(images)).argmax(1).tolist()]

    @torch.no_grad()
    def accuracy(self) -> dict[str, float]:
        """Return the share of other drawings that are classified right, of old objects and of the new one."""
        x_NC, y_N = self._drawings(range(300, 301), times_new=24)
        right, is_new = self._logits(x_NC).argmax(1) == y_N, y_N == len(self.classes) - 1
        return {"old": right[~is_new].float().mean().item(), "new": right[is_new].float().mean().item()}

    def _logits(self, x_NC: Tensor) -> Tensor:
        return self.layer((x_NC - self.mean) / self.std)

    def _drawings(self, variants: range, times_new: int) -> tuple[Tensor, Tensor]:
        """Return features and classes of drawings with blur and noise, as the detector was trained."""
        images, labels = [], []
        for index, emoji in enumerate(self.classes):
            for variant in variants:
                for time_ in range(times_new if index == len(self.classes) - 1 else 1):
                    rng = random.Random(hashed("probe", emoji.name, variant, time_))
                    picture = compose(emoji, rng.choice(list(PALETTE)), 1000 * time_ + variant).render(64)
                    image = Image.open(io.BytesIO(picture)).convert("RGB")
                    images.append(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8))))
                    labels.append(index)
        return self._features(images, noise=0.1), torch.tensor(labels)

    @torch.no_grad()
    def _features(self, images: list[Image.Image], noise: float = 0.0) -> Tensor:
        """Return the detector's features [N, 2 C] at the most probable centre."""
        found = []
        generator = torch.Generator().manual_seed(0)
        for begin in range(0, len(images), 64):
            x_BCHW = to_input(images[begin : begin + 64])
            x_BCHW = x_BCHW + noise * torch.randn(x_BCHW.shape, generator=generator)
            h_BCN = self.recogniser.features(x_BCHW)
            centre_BN = self.recogniser.centre(h_BCN).flatten(1)
            at_B = centre_BN.argmax(1)
            found.append(h_BCN.flatten(2)[torch.arange(len(at_B)), :, at_B])
        return torch.cat(found)


if __name__ == "__main__":
    main()
