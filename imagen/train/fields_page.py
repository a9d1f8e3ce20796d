"""Print the page docs/reference/fields.md: every field of an experiment, with its type, default and explanation.

python -m imagen.train.fields_page > docs/reference/fields.md
"""

import dataclasses
import json

from imagen.fielddocs import FieldDoc, field_docs
from imagen.train.experiment import Experiment

HEAD = """\
# Fields of an experiment

All fields that a preset sets, and that a [config file](../howto/training.md#a-config-file) or the command line
(`--optim.lr 2e-4`) can change. A dash stands for a value that must be given. This page is made from the comments beside
the fields in the code; `imagen config PRESET --write FILE` and `imagen config PRESET --explain WORD` show the same
words. More about the network: [Models](models.md); about training: [Training](training.md).
"""


def page() -> str:
    """Return the page, in Markdown: a table for each section."""
    sections: dict[str, list[FieldDoc]] = {}
    for doc in field_docs(Experiment):
        sections.setdefault(doc.path.rpartition(".")[0], []).append(doc)
    lines = [HEAD.rstrip()]
    for section, docs in sections.items():
        lines += [
            "",
            f"## {section or 'The experiment'}",
            "",
            "| field | type | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_row(doc) for doc in docs]
    return "\n".join(lines) + "\n"


def _row(doc: FieldDoc) -> str:
    name = doc.path.rpartition(".")[2]
    if doc.default is dataclasses.MISSING:
        default = "-"
    else:
        default = "the section's" if dataclasses.is_dataclass(doc.default) else f"`{json.dumps(doc.default)}`"
    return f"| `{name}` | {doc.kind} | {default} | {doc.explanation.replace('|', '&#124;')} |"


if __name__ == "__main__":
    print(page(), end="")
