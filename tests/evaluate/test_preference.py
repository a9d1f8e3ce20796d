"""Blind comparison: pairs, sides and scores; and the page in a real browser, from files."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from imagen.errors import UserError
from imagen.evaluate.preference import score_answers, write_preference_page
from imagen.pictures import read_metadata, write_png

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def folder(path: Path, colour: tuple[int, int, int], count: int = 20, prompt: str = "prompt") -> Path:
    for number in range(count):
        metadata = {"prompt": f"{prompt} {number} <b>", "seed": number}
        write_png(path / f"{number:04d}.png", Image.new("RGB", (16, 16), colour), metadata)
    write_png(path / "sheet.png", Image.new("RGB", (4, 4)))
    return path


@pytest.fixture
def page(tmp_path):
    red, blue = folder(tmp_path / "red", RED), folder(tmp_path / "blue", BLUE)
    assert write_preference_page(red, blue, tmp_path / "page") == 20
    return tmp_path / "page"


def side_of(page: Path, number: int, colour: tuple[int, int, int]) -> str:
    """Return the side on which the page shows `colour` in a pair."""
    with Image.open(page / "images" / f"{number:04d}-left.png") as image:
        return "left" if image.convert("RGB").getpixel((0, 0)) == colour else "right"


def write_answers(page: Path, answers: dict[str, str], identity: str | None = None) -> Path:
    identity = identity or json.loads((page / "key.json").read_text())["id"]
    path = page.parent / "answers.json"
    path.write_text(json.dumps({"id": identity, "answers": answers}))
    return path


def test_the_page_does_not_say_which_set_an_image_is_from(page):
    text = (page / "index.html").read_text()
    assert "red" not in text.replace("red)", "").split("<script>")[1] and "blue" not in text.split("<script>")[1]
    assert "swapped" not in text and "\\u003cb\\u003e" in text, "prompts are escaped"
    assert all(read_metadata(file) is None for file in (page / "images").iterdir())
    left = {side_of(page, number, RED) for number in range(20)}
    assert left == {"left", "right"}, "sides are random"


def test_scores_count_the_set_not_the_side(page):
    """Red is preferred in 12 pairs, blue in 5, 3 are ties: 13.5 of 20, with Wilson's interval."""
    answers = {str(n): side_of(page, n, RED if n < 12 else BLUE) for n in range(17)}
    answers |= {str(n): "tie" for n in range(17, 20)}
    found = score_answers(page, write_answers(page, answers))
    assert (found.first, found.second, found.ties) == (12, 5, 3)
    p, z2, n = 13.5 / 20, 1.96**2, 20
    centre, half = p + z2 / (2 * n), 1.96 * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    expected = (p, (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n))
    assert found.share == pytest.approx(expected, rel=1e-9)


def test_mistakes(page, tmp_path):
    with pytest.raises(UserError, match="is not empty"):
        write_preference_page(tmp_path / "red", tmp_path / "blue", page)
    with pytest.raises(UserError, match="contains no images"):
        write_preference_page(tmp_path / "red", tmp_path, tmp_path / "new")
    with pytest.raises(UserError, match="different prompts"):
        write_preference_page(tmp_path / "red", folder(tmp_path / "other", BLUE, prompt="x"), tmp_path / "new")
    with pytest.raises(UserError, match="19 of the same number"):
        write_preference_page(tmp_path / "red", folder(tmp_path / "fewer", BLUE, count=19), tmp_path / "new")
    with pytest.raises(UserError, match="contains no answers to"):
        score_answers(page, write_answers(page, {"0": "left"}, identity="another"))
    for number in ("20", "00", "-1", "\u0661", "9" * 5000):
        with pytest.raises(UserError, match="not an answer to one of its pairs"):
            score_answers(page, write_answers(page, {"0": "left", number: "left"}))
    with pytest.raises(UserError, match="no answers yet"):
        score_answers(page, write_answers(page, {}))
    with pytest.raises(UserError, match="is a file"):
        write_preference_page(tmp_path / "red", tmp_path / "blue", tmp_path / "answers.json")
    (page / "key.json").write_text("[]")
    with pytest.raises(UserError, match=r"key\.json is damaged"):
        score_answers(page, tmp_path / "answers.json")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_twenty_answers_by_keys_in_a_browser(page, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto((page / "index.html").as_uri())
        keys = {"left": "ArrowLeft", "right": "ArrowRight"}
        for number in range(20):
            assert shown.locator("#count").inner_text() == f"{number + 1} of 20"
            if number == 9:  # where the reader stopped, the page goes on
                shown.reload()
                assert shown.locator("#count").inner_text() == "10 of 20"
            if number == 12:  # an answer by mistake, taken back
                shown.keyboard.press("ArrowDown")
                shown.keyboard.press("Backspace")
            shown.keyboard.press("ArrowDown" if number >= 18 else keys[side_of(page, number, RED)])
        assert shown.locator("#done").is_visible()
        with shown.expect_download() as download:
            shown.click("#save")
        download.value.save_as(tmp_path / "answers.json")
        browser.close()
    found = score_answers(page, tmp_path / "answers.json")
    assert (found.first, found.second, found.ties) == (18, 0, 2)
    assert found.share.value == 0.95
