"""Compare caption cleaning with diffusers' IF pipeline."""

import sys

import pytest

from imagen.errors import UserError
from imagen.text.cleaning import clean_caption

CAPTIONS = [
    "A red apple",
    "  The QUICK   brown fox ; jumps.  ",
    "",
    " \n",
    "<person> at https://www.example.com/some-page/pic?x=1 (photo)",
    "see shop.example.co.uk/offer - mail me@example.com or @someone_42",
    "Blue%20chair+with%20arms &amp; legs &quot;new&quot; &lt;b&gt;bold&lt;/b&gt;",
    "<p>Some <b>bold</b> text<br/>next</p><!-- hidden -->",
    "中文 日本語 カタカナ 한국어 text ㍿ ㇰ",
    "dash – dash — dash ‐ ‒ ― 〜 ー －",
    '“quoted” ‘single’ «angle» `tick´ """THREE""" \'\'two\'\'',
    "192.168.0.1 at 12:30 ",
    "item #12 and #12345 and 1234567 and #1234",
    "IMG_2031.jpg and some.file.PNG, pdf images, mp4 image",
    "wait...what?.. ok . then",
    "***SALE*** ©2020 ™ ½ price [new] {x} | \\ / ~ §",
    "this-is-my-cute-cat_photo",
    "a-b c_d",
    "jc6640 jc6640vc 6640vc231 j2d1a2a3 abc12 AB123456789",
    "Worldwide free shipping! free download free click for more page  12",
    "30x40 cm 3.5×2 12х15",
    "name : value,with/no.spaces",
    "'wrapped in quotes'",
    "'leading quote",
    "-dash first and last-",
    ".hidden",
    "schÃ¶n â€“ mojibake ünïcode",
    "line\\nbreak and real\nbreak\tand tab",
    "a &#39;numeric&#39; entity &eacute; 5 < 6 > 4 & so on",
    "www.example.org/path http://a.it https:x",
]


def test_cleaning_equals_diffusers() -> None:
    pytest.importorskip("ftfy"), pytest.importorskip("bs4")
    pipeline = pytest.importorskip("diffusers").IFPipeline
    reference = pipeline.__new__(pipeline)
    assert [clean_caption(caption, "caption") for caption in CAPTIONS] == reference._text_preprocessing(CAPTIONS, True)
    assert [clean_caption(caption, "lower") for caption in CAPTIONS] == reference._text_preprocessing(CAPTIONS, False)
    assert [clean_caption(caption, "none") for caption in CAPTIONS] == CAPTIONS


def test_only_the_beginning_of_a_long_text_is_cleaned() -> None:
    words = "a red apple "
    assert clean_caption(words * 100_000, "caption") == clean_caption((words * 1_000)[:10_000], "caption")
    assert clean_caption(words * 2_000, "lower") == (words * 2_000).strip()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_caption("A", "lower") == "a"
    with pytest.raises(UserError, match=r"ftfy; run: pip install 'imagen-cascade\[deepfloyd\]'"):
        clean_caption("A", "caption")
