"""Insert the table of all registered samplers into the site, after the line <!-- samplers -->.

The table in the page's source is what GitHub shows; the site does not depend on it.
"""

import re

from imagen.diffusion.samplers import samplers_table

TABLE = re.compile(r"(?<=<!-- samplers -->\n)(\|.*\n)+")


def on_page_markdown(markdown, **_):
    """Replace the table of a page. MkDocs calls this for each page."""
    return TABLE.sub(lambda _: samplers_table(), markdown)
