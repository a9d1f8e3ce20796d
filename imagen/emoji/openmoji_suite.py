"""Choose the held-out prompts of the embedded OpenMoji data, and the drawings with which samples are compared."""

import io
from collections.abc import Iterable

from PIL import Image

from imagen.emoji.dataset import compose
from imagen.emoji.prompts import heldout_counts, heldout_prompts, heldout_relations
from imagen.emoji.recogniser import Recogniser
from imagen.emoji.single import OBJECTS, heldout_colour, objects
from imagen.emoji.suite import Suite
from imagen.errors import UserError

VARIANTS = range(4)  # held-out drawings per object with which samples are compared
OTHERS = range(4, 5)  # further drawings, one per object, which are compared with VARIANTS


def openmoji_suite(recogniser: Recogniser, n: int, limit_objects: int | None = OBJECTS) -> Suite:
    """Return at most `n` held-out prompts of each kind and features of held-out drawings, of `limit_objects` objects.

    Each single object has one prompt. Raises UserError if there are fewer than two objects.
    """
    single = heldout_prompts(min(n, limit_objects or n), limit_objects=limit_objects)
    if len(single) < 2:
        raise UserError("the kernel distance needs two objects or more; evaluate with more objects (--objects)")
    real, others = (recogniser.embed(heldout_drawings(limit_objects, variants)) for variants in (VARIANTS, OTHERS))
    index_of = {emoji.name: index for index, emoji in enumerate(objects(limit_objects))}
    originals = others[[index_of[each.object] for each in single]]
    prompts = {
        "single": single,
        "relation": heldout_relations(n, limit_objects=limit_objects),
        "count": heldout_counts(n, limit_objects=limit_objects),
    }
    return Suite(prompts=prompts, drawings_ND=real, originals={"single": originals})


def heldout_drawings(limit_objects: int | None, variants: Iterable[int], size: int = 64) -> list[Image.Image]:
    """Render the held-out combinations of object and colour, object by object."""
    return [
        Image.open(io.BytesIO(compose(emoji, heldout_colour(emoji), variant).render(size)))
        for emoji in objects(limit_objects)
        for variant in variants
    ]
