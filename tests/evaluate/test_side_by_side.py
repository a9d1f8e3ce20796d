"""Lay evaluations side by side with `imagen compare`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from imagen.evaluate import plots

REFERENCE = {"data": "shards", "fingerprint": "abc", "split": "heldout", "images": 100}


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 2}


def report(**changes) -> dict:
    row = {"metrics": {"fid": interval(10.0), "kid": interval(5.0)}, "images": 100, "inputs": "generated"}
    extractors = {"inception": "Inception v3", "clip": "CLIP (a)"}
    return {**row, "resolution": 64, "reference": REFERENCE, "extractors": extractors, **changes}


def write(folder: Path, value: object) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(value))
    return folder


def test_two_evaluations_and_a_sweep(imagen, tmp_path):
    one = write(tmp_path / "one", report())
    two = write(tmp_path / "two", report(metrics={"fid": interval(7.5), "precision": interval(0.5)}))
    rows = [report(guidance=value) for value in (1.0, 2.0)]
    swept = write(tmp_path / "swept", {"sweep": "guidance", "rows": rows})
    found = json.loads(imagen("compare", one, two, swept, "--out", tmp_path / "plot.png", "--json"))
    assert [row["name"] for row in found] == [str(one), str(two), f"{swept}, guidance 1.0", f"{swept}, guidance 2.0"]
    assert found[1]["metrics"] == {"fid": interval(7.5), "precision": interval(0.5)}
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100
    table = imagen("compare", one, two, "--out", tmp_path / "plot.svg")
    assert "7.5 (6.5 to 9.5)" in table and "plots: " in table and "<svg" in (tmp_path / "plot.svg").read_text()


def test_names_that_matplotlib_would_interpret(imagen, tmp_path):
    """Formulas between dollars, and labels from an underscore on, which a legend leaves out."""
    folders = [write(tmp_path / name, report()) for name in ("a", "b$\\frac$")]
    imagen("compare", *folders, "--out", tmp_path / "plot.svg")
    figure = plots.side_by_side([{"name": name, "metrics": {"$\\x$": interval(1)}} for name in ("_a", "$\\x$")])
    figure.canvas.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a", "$\\x$"]


def test_the_gap_names_stage_and_inputs(imagen, tmp_path, caplog):
    rows = [report(), report(resolution=256), report(resolution=256, inputs="true")]
    gap = write(tmp_path / "gap", {"gap": True, "rows": rows})
    found = json.loads(imagen("compare", gap, "--out", tmp_path / "plot.png", "--json"))
    assert [row["name"] for row in found] == [f"{gap}, 64 generated", f"{gap}, 256 generated", f"{gap}, 256 true"]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 50}, "different numbers of images"),
        ({"reference": {**REFERENCE, "split": "train"}}, "different real images"),
        ({"reference": {**REFERENCE, "images": 50}}, "different numbers of real images"),
        ({"resolution": 128}, "different resolutions"),
        ({"extractors": {"inception": "Inception v3", "clip": "CLIP (b)"}}, "different networks for clip"),
    ],
)
def test_it_warns_of_values_that_cannot_be_compared(imagen, tmp_path, caplog, changes, said):
    pair = [write(tmp_path / "one", report()), write(tmp_path / "two", report(**changes))]
    imagen("compare", *pair, "--out", tmp_path / "plot.png")
    (message,) = caplog.messages
    assert said in message


@pytest.mark.parametrize(
    "damaged",
    [
        *([], {"rows": []}, {"metrics": {}}, report(images="many"), report(metrics={"fid": {"value": 1}})),
        *(report(metrics={"fid": 3.0}), report(metrics={"fid": None}), report(images=None), report(resolution=[64])),
        *(report(reference={**REFERENCE, "fingerprint": []}), report(reference={**REFERENCE, "images": {}})),
        *(report(extractors=["clip"]), report(extractors={"clip": {}})),
    ],
)
def test_damaged_reports(error_of, tmp_path, damaged):
    folder = write(tmp_path / "bad", damaged)
    assert "is not a report of `imagen evaluate`, or is damaged" in error_of(
        "compare", folder, "--out", tmp_path / "plot.png"
    )


def test_other_file_formats(error_of, tmp_path):
    folder = write(tmp_path / "one", report())
    assert ".png, .svg, .pdf; choose one of these" in error_of("compare", folder, "--out", tmp_path / "plot.gif")


def test_a_figure_has_no_empty_panel():
    figure = plots.side_by_side([{"name": "a", "metrics": {str(number): interval(number) for number in range(5)}}])
    assert [panel.get_title() for panel in figure.axes] == ["0", "1", "2", "3", "4"]
