"""`imagen subject`"""

import argparse
from pathlib import Path

from imagen.cli import fields
from imagen.cli.command import Command, add_device
from imagen.cli.output import Result, lines
from imagen.cli.values import count, minutes
from imagen.errors import UserError, check_text
from imagen.files import read_text


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=Path, metavar="IMAGES", help="folder of 3 to 30 images, each with or without its caption (.txt)")
    add("--out", type=Path, required=True, metavar="RUN", help="folder of the run, new or to resume")
    add(
        "--init",
        metavar="CASCADE",
        help="stage to teach: a cascade, a run or `emoji`, with #RESOLUTION (default: emoji#64)",
    )
    add("--prompt", metavar="TEXT", help="caption of images without one, as in 'a photo of sks dog'")
    add("--prior", metavar="TEXT|FILE", help="prompt of class images, as in 'a photo of a dog', or a file of prompts")
    add("--prior-images", type=Path, metavar="DIR", help="class images (default: the cascade generates them)")
    add("--prior-count", type=count, default=200, metavar="N", help="generated class images (default: 200)")
    add("--minutes", type=minutes, metavar="M", help="stop training at a checkpoint after this time")
    add("--preset", default="subject", metavar="PRESET", help="training settings (default: subject)")
    add_device(parser)


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.devices import choose_device
    from imagen.data.embed.encode import encode_shards
    from imagen.text.encoder import LazyEncoder
    from imagen.torchrun import read_launch
    from imagen.train.experiment import check
    from imagen.train.ranks import process_group
    from imagen.train.run import train_run
    from imagen.train.subject import Subject, build_subject

    if read_launch()[1] > 1:
        raise UserError(
            "imagen subject runs in one process: start it without torchrun; or, once it has written RUN/data, train "
            "with `torchrun ... -m imagen train subject --init CASCADE --data RUN/data/subject=1 --data "
            "RUN/data/prior=1 --out OTHER`"
        )
    experiment = fields.experiment(options)
    check(experiment)
    prior = _prompts(options.prior)
    if options.prior_images is not None and not prior:
        raise UserError("--prior-images needs --prior, the caption of class images without one")
    device = choose_device(options.device)
    subject = Subject(
        images=options.images,
        prompt=options.prompt,
        prior=prior,
        prior_images=options.prior_images,
        prior_count=options.prior_count,
    )
    data = build_subject(subject, experiment, options.out, device=device)
    if experiment.text is not None and not experiment.data.on_the_fly:
        encoder = LazyEncoder(experiment.text, device)
        for portion in data:
            encode_shards(portion.location, encoder)
    with process_group(device) as ranks:
        result = train_run(experiment, data, options.out, minutes=options.minutes, ranks=ranks)
    file = options.out / "lora.safetensors"
    document = {"run": str(options.out), "step": result.step, "finished": result.finished, "reason": result.reason}
    if not experiment.lora.rank:
        return lines(document, f"sample from it: imagen sample {options.out} PROMPT --out DIR")
    source = "CASCADE" if experiment.init is None else experiment.init.source.partition("#")[0]
    return lines(
        document | {"lora": str(file)}, f"sample with it: imagen sample {source} PROMPT --lora {file} --out DIR"
    )


def _prompts(text: str | None) -> tuple[str, ...]:
    """Return the prompts of --prior: the lines of a file, or the text itself."""
    if text is None:
        return ()
    if Path(text).is_file():
        found = [line.strip() for line in read_text(text).splitlines() if line.strip()]
        if not found:
            raise UserError(f"{text} holds no prompts")
    else:
        found = [text]
    for prompt in found:
        check_text("a prompt of --prior", prompt, 10_000)
    return tuple(found)


COMMAND = Command(
    name="subject",
    help="teach a stage a subject from few images (DreamBooth), as a LoRA",
    add=add,
    run=run,
    details=f"{fields.HELP}\n"
    "Generates class images with the cascade itself, so that it does not forget the class (prior preservation), then\n"
    "trains adapters on both. The same command resumes. Docs: docs/howto/finetune.md.\n\n"
    "  imagen subject photos --init cascade#64 --prompt 'photo of sks dog' --prior 'photo of a dog' --out runs/dog\n"
    "  imagen sample cascade 'photo of sks dog' --lora runs/dog/lora.safetensors:0.8 --out pictures",
    has_fields=True,
)
