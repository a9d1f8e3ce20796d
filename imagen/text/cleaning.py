"""Clean captions before they are tokenised.

"caption" removes links, file names, product numbers and shop phrases of web text, as in the training of DeepFloyd IF.
The rules, their order and running them twice must match IF, because its models were trained on such text.
`tests/text/test_captions.py` compares with the implementation in diffusers.
"""

import html
import re
import urllib.parse
from html.parser import HTMLParser

from imagen.distribution import missing
from imagen.limits import CHARACTERS
from imagen.text.config import Cleaning

_LINK = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rules: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_BEFORE_HTML = _rules(
    ("<person>", "person"),  # replaces names in some data sets
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_LINK})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_LINK})", ""),
)
_AFTER_HTML = _rules(
    (r"@\w+\b", ""),  # account names
    ("[\u31c0-\u31ff\u3200-\u4dff\u4e00-\u9fff]+", ""),  # Chinese, Japanese and Korean characters
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_AFTER_REPAIR = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # product numbers
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes, with a Latin or Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_JOINTS = re.compile("[-_]")


def clean_caption(caption: str, cleaning: Cleaning) -> str:
    """Return the cleaned caption, the input of the tokenizer.

    none: unchanged. lower: in lower case, without surrounding spaces. caption: as in the training of DeepFloyd IF, but
    without what follows the first 10,000 characters, because the time of the rules grows with the square of the length.
    Raises UserError if a required package is missing.
    """
    if cleaning == "none":
        return caption
    if cleaning == "lower":
        return caption.lower().strip()
    return _clean(_clean(caption[:CHARACTERS]))


def _clean(caption: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise missing("text.cleaning 'caption' needs the package ftfy", "deepfloyd") from None
    caption = _apply(_BEFORE_HTML, urllib.parse.unquote_plus(caption).strip().lower())
    caption = _apply(_AFTER_HTML, _without_tags(caption))
    if len(_JOINTS.findall(caption)) > 3:  # words-joined-to-one
        caption = _JOINTS.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _apply(_AFTER_REPAIR, caption).strip()


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_tags(text: str) -> str:
    parser = _TextOnly()
    parser.feed(text)
    parser.close()
    return "".join(parser.pieces)


class _TextOnly(HTMLParser):
    """Collect the text between tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)
