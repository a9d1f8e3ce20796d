"""Ready experiments: `PRESETS` maps a name to the function that returns its `Experiment`."""

from collections.abc import Callable

from imagen.emoji import presets as emoji
from imagen.emoji.fluent import presets as fluent
from imagen.errors import UserError, suggest
from imagen.presets import debug, jobs, paper
from imagen.train.experiment import Experiment

_FUNCTIONS: tuple[Callable[[], Experiment], ...] = (
    emoji.emoji_64,
    emoji.emoji_mini_64,
    emoji.emoji_256,
    emoji.emoji_1024,
    fluent.fluent_32,
    fluent.fluent_64,
    fluent.fluent_256,
    fluent.fluent_1024,
    jobs.text2im_64_397m,
    jobs.text2im_64_2b,
    jobs.text2im_64_deberta,
    jobs.sr_256_600m,
    jobs.sr_1024_400m,
    paper.paper_base_64,
    paper.paper_sr_256,
    paper.paper_sr_1024,
    debug.debug_64,
    debug.debug_256,
    debug.debug_1024,
)
PRESETS: dict[str, Callable[[], Experiment]] = {function.__name__: function for function in _FUNCTIONS}


def preset(name: str) -> Experiment:
    """Return the preset of that name. Raises UserError with the nearest name if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{suggest(name, PRESETS)} (`imagen presets` lists them)")
    return PRESETS[name]()
