"""Test the page in a real browser. Skipped if Chromium is not installed (Debian: apt-get install chromium)."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import change_limits, fast_cascade, serving, wait_until

from imagen.diffusion.samplers import sampler_names

playwright = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WAIT = 60_000.0  # milliseconds
expect.set_options(timeout=WAIT)
CARDS, STORED = "#gallery > li", "#gallery > li.stored"
PREVIEW = '.picture[src^="data:image/jpeg"]'


@pytest.fixture(scope="module")
def running():
    with serving(limits=change_limits(body=10**7, input_pixels=2**22, steps=250)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        shown = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield shown
        shown.close()


@pytest.fixture
def page(running, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    shown = context.new_page()
    shown.set_default_timeout(WAIT)
    problems: list[str] = []
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    shown.problems = problems
    shown.goto(running.url)
    shown.wait_for_selector("#sizes input")
    yield shown
    context.close()
    assert problems == []


def submit_prompt(page, prompt: str, *, steps: int = 3, count: int = 1) -> None:
    page.fill("#prompt", prompt)
    if not page.locator("#settings").evaluate("details => details.open"):
        page.click("#settings summary")
    page.fill("#steps", str(steps))
    page.select_option("#count", str(count))
    page.press("#prompt", "Enter")


def test_a_prompt_becomes_an_image_in_the_gallery(running, page):
    with running.slow_engine():
        submit_prompt(page, "a <b>cat</b>", steps=12)
        seen = set()
        wait_until(lambda: seen.add(page.locator(".picture").first.get_attribute("src")) or len(seen) > 3)  # type: ignore[func-returns-value]
    expect(page.locator(STORED)).to_have_count(1)
    assert page.locator(STORED).inner_text() == "a <b>cat</b>", "text, not HTML"

    page.click(".open")
    expect(page.locator("#viewer-facts")).to_contain_text("32 × 32")
    assert re.fullmatch(r"imagen sample CASCADE --stages=2 --seed=\d+ .*", page.locator("#command").inner_text())
    with page.expect_download() as download:
        page.click("#download")
    assert re.fullmatch(r"a-b-cat-b-\d+\.png", download.value.suggested_filename)
    assert Path(download.value.path()).read_bytes()[:4] == b"\x89PNG"
    page.click("#again")
    expect(page.locator(STORED)).to_have_count(2)
    page.locator(".open").first.click()
    page.click("#variations")
    expect(page.locator(STORED)).to_have_count(6)
    page.locator(".open").first.click()
    expect(page.locator("#viewer-facts")).to_contain_text(re.compile(r"Seed\d+, varied by 30 % with seed \d+"))
    expect(page.locator("#viewer-facts")).to_contain_text("a variation of seed")
    expect(page.locator("#command")).to_contain_text("imagen sample CASCADE --from a-b-cat-b-")
    expect(page.locator("#variations")).to_be_disabled()
    expect(page.locator("#variations")).to_have_attribute("title", re.compile("this one is a variation of seed"))

    page.click("#paint")
    page.click("#brush-form button[type=submit]")
    expect(page.locator("#brush-problem")).to_have_text("Paint over the part that should change.")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    page.fill("#brush-prompt", "a dog")
    page.click("#brush-form button[type=submit]")
    expect(page.locator(STORED)).to_have_count(7)
    expect(page.locator(STORED).first).to_contain_text("a dog")

    page.reload()
    expect(page.locator(STORED)).to_have_count(7)
    expect(page.locator("#stored")).to_have_text("7 images, stored in this browser")
    page.locator(".open").first.click()
    page.click("#delete")
    expect(page.locator(STORED)).to_have_count(6)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    expect(page.locator("#empty")).to_be_visible()


def test_a_jpeg_without_a_command_cannot_be_regenerated(page):
    page.click("#settings summary")
    page.select_option("#format", "jpeg")
    submit_prompt(page, "a cat")
    page.click(".open")
    expect(page.locator("#command")).to_contain_text("imagen sample CASCADE --stages=2")
    expect(page.locator("#copy")).to_be_enabled()
    page.click("#variations")
    expect(page.locator(STORED)).to_have_count(5)
    page.locator(".open").first.click()
    expect(page.locator("#command")).to_contain_text("generate them as PNG")
    expect(page.locator("#copy")).to_be_disabled()


def test_a_job_can_be_cancelled(running, page):
    with running.slow_engine():
        submit_prompt(page, "a cat", steps=250, count=2)
        expect(page.locator(f"{CARDS} {PREVIEW}").first).to_be_visible()
        page.locator(f"{CARDS} button").first.click()
        expect(page.locator(CARDS)).to_have_count(1)
        page.locator(f"{CARDS} button").first.click()
        expect(page.locator(CARDS)).to_have_count(0)
    wait_until(lambda: running.service.engines[0].load() == (0, 0))
    expect(page.locator("#empty")).to_be_visible()


def test_the_queue_position_is_shown(running, page):
    scheduler = running.service.engines[0].scheduler
    before = scheduler.limits
    scheduler.limits = change_limits(active=1)
    try:
        with running.pause_engine():
            submit_prompt(page, "a cat", count=2)
            wait_until(lambda: running.service.engines[0].load() == (1, 1))
            submit_prompt(page, "a dog")
            expect(page.locator(CARDS).first).to_contain_text("1 image ahead in the queue")
        expect(page.locator(STORED)).to_have_count(3)
    finally:
        scheduler.limits = before


def test_samplers_come_from_the_server(page):
    page.click("#settings summary")
    assert page.locator("#sampler option").all_inner_texts() == ["default", *sampler_names()]
    page.select_option("#sampler", "heun")
    submit_prompt(page, "a cat")
    expect(page.locator(STORED)).to_have_count(1)


def test_error_messages_are_shown(page):
    page.click("#generate")
    expect(page.locator("#problem")).to_have_text("Enter a prompt.")
    submit_prompt(page, "a cat", steps=999)
    assert page.locator("#steps").evaluate("input => input.validity.rangeOverflow"), "the browser reports it"
    page.fill("#steps", "")
    page.fill("#prompt", "x " * 80)
    page.press("#prompt", "Enter")
    expect(page.locator("#problem")).to_have_text("The prompt is too long; the limit is 100 characters.")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.fill("#prompt", "a cat")
    page.press("#prompt", "Enter")
    expect(page.locator("#problem")).to_contain_text("Init cannot be read")
    page.problems.clear()  # the browser logs the 422 and the invalid image itself


def test_an_input_image_can_be_masked_and_sent(page, tmp_path):
    from serving import noise_image

    noise_image(64).save(tmp_path / "own.png")
    page.set_input_files("#file", tmp_path / "own.png")
    expect(page.locator("#input-image-view")).to_be_visible()
    submit_prompt(page, "a cat")
    expect(page.locator(STORED)).to_have_count(1)
    page.click("#input-image-paint")
    expect(page.locator("#canvas")).to_be_focused()
    for key in ("ArrowLeft", "Space", "ArrowUp", "Space", "+"):  # uses only the keyboard
        page.keyboard.press(key)
    page.click("#brush-form button[type=submit]")
    expect(page.locator(STORED)).to_have_count(2)
    page.click("#input-image-remove")
    noise_image(16).save(tmp_path / "small.png")
    page.set_input_files("#file", tmp_path / "small.png")
    page.click("#input-image-upscale")
    expect(page.locator(STORED)).to_have_count(3)
    page.locator(".open").first.click()
    expect(page.locator("#command")).to_contain_text("imagen upscale CASCADE picture.png")


def test_the_page_asks_for_the_key(browser):
    with serving(keys={"a" * 20: "ann"}) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key-value", "a" * 20)
        page.click("#key button.primary")
        page.wait_for_selector("#sizes input")
        submit_prompt(page, "a cat")
        expect(page.locator(STORED)).to_have_count(1)
        context.close()


@pytest.fixture(scope="module")
def fast_server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, serving(fast_cascade(tmp_path_factory.mktemp("fast"))) as server:
        patch.setattr("imagen.serve.hints.SECONDS", 60.0)
        yield server


@pytest.fixture
def fast_page(fast_server, browser):
    context = browser.new_context(
        viewport={"width": 390, "height": 840}, color_scheme="dark", bypass_csp=True, reduced_motion="reduce"
    )
    shown = context.new_page()
    shown.set_default_timeout(WAIT)
    shown.goto(fast_server.url)
    shown.wait_for_selector("#sizes input")
    yield shown
    context.close()


def sent_body(page, work: Callable[[], None]) -> dict[str, object]:
    """Return the body of the request that `work` sends."""
    with page.expect_request("**/api/generate") as request:
        work()
    return request.value.post_data_json


def test_fast_sampling_is_a_switch(fast_page):
    page = fast_page
    switch = page.get_by_role("switch", name="Fast", exact=True)
    expect(switch).not_to_be_checked()
    page.click("#settings summary")
    for name, value in (("negative", "a dog"), ("steps", "5"), ("guidance", "3")):
        page.fill(f"#{name}", value)
    page.select_option("#sampler", "heun")
    page.fill("#prompt", "a cat")
    switch.focus()
    page.keyboard.press("Space")
    expect(switch).to_be_checked()
    for name in ("steps", "guidance", "sampler"):
        expect(page.locator(f"#{name}")).to_be_disabled()
    expect(page.locator("#negative")).to_be_enabled()  # the second stage has no fast settings, and guidance
    note = "Fast sampling has its own steps, guidance scale and sampler."
    expect(page.locator("#steps")).to_have_accessible_description(note)
    body = sent_body(page, lambda: page.press("#prompt", "Enter"))
    assert body["fast"] is True and body["negative"] == "a dog"
    assert not {"steps", "guidance", "sampler"} & set(body)
    expect(page.locator(STORED)).to_have_count(1)
    page.click(".open")
    expect(page.locator("#command")).to_contain_text("--fast --out pictures")
    expect(page.locator("#viewer-facts")).to_contain_text("Sampling")
    assert sent_body(page, lambda: page.click("#again"))["fast"] is True
    expect(page.locator(STORED)).to_have_count(2)

    switch.uncheck()
    expect(page.locator("#steps")).to_be_enabled()
    expect(page.locator("#steps")).to_have_accessible_description("")
    body = sent_body(page, lambda: page.press("#prompt", "Enter"))
    assert "fast" not in body
    assert (body["steps"], body["guidance"], body["sampler"]) == (5, 3, "heun"), "settings survive the switch"
    expect(page.locator(STORED)).to_have_count(3)
    switch.check()
    page.reload()
    page.wait_for_selector("#sizes input")
    expect(switch).not_to_be_checked()
    expect(page.locator("#steps")).to_be_enabled()


def reload_with(page, fast: dict[str, object] | None) -> None:
    """Reload the page, as of a cascade whose stages all have these fast settings."""
    about = page.request.get(page.url.rstrip("/") + "/api/about").json()
    for stage in about["stages"]:
        stage["fast"] = fast
    page.route("**/api/about", lambda route: route.fulfill(json=about))
    page.reload()
    page.wait_for_selector("#sizes input")


def test_no_negative_prompt_is_sent_without_guidance(fast_page):
    reload_with(fast_page, {"steps": 1, "guidance": 1.0, "sampler": "ddim"})
    fast_page.click("#settings summary")
    fast_page.fill("#negative", "a dog")
    fast_page.get_by_role("switch").check()
    expect(fast_page.locator("#negative")).to_be_disabled()
    expect(fast_page.locator("#fast-note")).to_contain_text("uses no negative prompt")
    fast_page.fill("#prompt", "a cat")
    body = sent_body(fast_page, lambda: fast_page.press("#prompt", "Enter"))
    assert body["fast"] is True and "negative" not in body
    expect(fast_page.locator(STORED)).to_have_count(1)


def test_an_image_of_a_fast_cascade_is_sampled_again_without_one(fast_page):
    fast_page.get_by_role("switch").check()
    submit_fast = lambda: (fast_page.fill("#prompt", "a cat"), fast_page.press("#prompt", "Enter"))  # noqa: E731
    assert sent_body(fast_page, submit_fast)["fast"] is True
    expect(fast_page.locator(STORED)).to_have_count(1)
    reload_with(fast_page, None)
    expect(fast_page.locator("#fast-switch")).to_be_hidden()
    fast_page.click(".open")
    assert "fast" not in sent_body(fast_page, lambda: fast_page.click("#again"))
    expect(fast_page.locator(STORED)).to_have_count(2)


def test_there_is_no_switch_without_fast_settings(page):
    expect(page.locator("#fast-switch")).to_be_hidden()
    assert "fast" not in sent_body(page, lambda: submit_prompt(page, "a cat"))
    expect(page.locator(STORED)).to_have_count(1)
    expect(page.locator("#warning")).to_be_empty()


def test_unknown_words_are_reported(fast_page):
    page = fast_page
    page.fill("#prompt", "a zeppelin and a <b>cat</b>")
    page.press("#prompt", "Enter")
    warning = page.get_by_role("status").filter(has_text="Never trained on")
    expect(warning).to_contain_text("'zeppelin' (nearest of the names it knows: ")
    expect(warning).to_contain_text("the images will probably show something else.")
    expect(page.locator(STORED)).to_have_count(1)
    expect(warning).to_be_visible()
    page.get_by_role("switch").check()
    assert serious_findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click(".open")
    expect(page.locator("#viewer-facts")).to_contain_text("Never trained on 'zeppelin'")
    assert serious_findings(page) == []
    page.keyboard.press("Escape")
    page.fill("#prompt", "a cat")
    page.press("#prompt", "Enter")
    expect(page.locator(STORED)).to_have_count(2)
    expect(page.locator("#warning")).to_be_empty()


def serious_findings(page) -> list[str]:
    """Return the serious and critical findings of axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page)
    return [
        f"{rule['id']}: {rule['help']} {node['html'][:200]}"
        for rule in found.response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_has_no_serious_accessibility_findings(running, browser, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 840}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(running.url)
    page.wait_for_selector("#sizes input")
    submit_prompt(page, "a cat")
    expect(page.locator(STORED)).to_have_count(1)
    assert serious_findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing exceeds the width of the page"
    page.click(".open")
    assert serious_findings(page) == []
    page.click("#paint")
    expect(page.locator("#brush")).to_be_visible()
    assert serious_findings(page) == []
    page.goto(f"{running.url}/docs")
    page.wait_for_selector("article")
    assert serious_findings(page) == []
    context.close()


def test_the_page_works_with_the_keyboard_alone(page):
    page.locator("#prompt").focus()
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    expect(page.locator(STORED)).to_have_count(1)
    wait_until(_reaches(page, "open"))
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "open", "the focus returns to the image"


def _reaches(page, name: str) -> Callable[[], bool]:
    def tab() -> bool:
        page.keyboard.press("Tab")
        return page.evaluate("document.activeElement.className") == name

    return tab
