"""Test prompt scores against known answers, the packaged recogniser on original drawings, and the kernel distance."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")

from imagen.emoji import recogniser_training
from imagen.emoji.alignment import PromptScore, accuracies, evaluate, relation, score_image
from imagen.emoji.dataset import HeldoutPrompt, compose, heldout_colour
from imagen.emoji.openmoji_suite import openmoji_suite
from imagen.emoji.picture import PALETTE
from imagen.emoji.recogniser import Detection, Recogniser, load_recogniser
from imagen.emoji.recogniser_training import loss as recogniser_loss
from imagen.emoji.recogniser_training import render_sprite, save_recogniser, train_recogniser
from imagen.emoji.scene import compose_group, compose_pair
from imagen.emoji.single import objects
from imagen.errors import UserError
from imagen.evaluate.metrics.kernel import kid

SINGLE = HeldoutPrompt("", "red", "horse")
THREE = HeldoutPrompt("", "red", "horse", number=3)
LEFT = HeldoutPrompt("", "red", "horse", relation="left", other="bus")
RED, BLUE = (Image.new("RGB", (64, 64), PALETTE[colour]) for colour in ("red", "blue"))


def detections(*names: str) -> list[Detection]:
    """Return detections with these names, from left to right."""
    return [Detection(name, 0.9 - i / 100, 0.2 + 0.3 * i, 0.5) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("prompt", "image", "detected", "score"),
    [
        (SINGLE, RED, detections("horse"), PromptScore(True, True)),
        (SINGLE, BLUE, detections("horse"), PromptScore(True, False)),
        (SINGLE, RED, detections("bus", "horse"), PromptScore(False, True)),  # the most probable detection decides
        (THREE, RED, detections("horse", "horse", "horse"), PromptScore(True, True, number=True)),
        (THREE, RED, detections("horse", "horse"), PromptScore(True, True, number=False)),
        (THREE, RED, detections("horse", "horse", "bus"), PromptScore(True, True, number=False)),
        (THREE, RED, detections("bus"), PromptScore(False, True, number=False)),
        (LEFT, RED, detections("horse", "bus"), PromptScore(True, True, relation=True)),
        (LEFT, RED, detections("bus", "horse"), PromptScore(True, True, relation=False)),
        (LEFT, BLUE, detections("horse", "horse"), PromptScore(False, False, relation=False)),
    ],
)
def test_score_image(prompt, image, detected, score):
    assert score_image(prompt, image, detected) == score


def test_relation_is_the_main_direction():
    def at(x: float, y: float) -> list[Detection]:
        return [Detection("a", 1, 0.5 + x, 0.5 + y), Detection("b", 1, 0.5, 0.5)]

    found = [relation(at(x, y), "a", "b") for x, y in ((-0.3, 0.2), (0.3, 0.2), (0.1, -0.2), (0.1, 0.2))]
    assert found == ["left", "right", "above", "below"]


def test_accuracies_count_only_properties_of_the_prompt():
    scores = [
        PromptScore(True, True, relation=True),
        PromptScore(True, False, relation=True),
        PromptScore(False, True, relation=False),
    ]
    assert accuracies(scores) == pytest.approx({"object": 2 / 3, "colour": 2 / 3, "relation": 2 / 3, "all": 1 / 3})


def test_openmoji_suite_has_prompts_of_each_kind():
    prompts = openmoji_suite(Recogniser(["a"], 16), 5, 6).prompts
    assert [len(prompts[kind]) for kind in ("single", "relation", "count")] == [5, 5, 5]
    assert all(prompt.number == 1 and prompt.relation is None for prompt in prompts["single"])
    assert all(prompt.relation for prompt in prompts["relation"])
    assert all(prompt.number > 1 for prompt in prompts["count"])


def rendered(composition) -> Image.Image:
    return Image.open(io.BytesIO(composition.render(64)))


def test_packaged_recogniser_detects_original_drawings():
    """Check held-out combinations. Its measured accuracy is in docs/explanation/reference-run.md."""
    known = objects(96)
    horse, bus, pear = (next(e for e in known if e.name == name) for name in ("horse", "bus", "pear"))
    prompts = {
        "single": [HeldoutPrompt("", heldout_colour(emoji), emoji.name) for emoji in known[::8]],
        "relation": [HeldoutPrompt("", "teal", "horse", relation="above", other="bus")],
        "count": [HeldoutPrompt("", "pink", "pear", number=n) for n in (2, 3, 4)],
    }
    pictures = {
        "single": [rendered(compose(emoji, heldout_colour(emoji))) for emoji in known[::8]],
        "relation": [rendered(compose_pair(horse, bus, "above", "teal"))],
        "count": [rendered(compose_group(pear, n, "pink")) for n in (2, 3, 4)],
    }
    found, scores = evaluate(load_recogniser(), prompts, pictures)
    assert all(found[kind]["all"] == 1.0 for kind in found), scores
    wrong = {"single": prompts["single"][::-1], "relation": prompts["relation"], "count": prompts["count"][::-1]}
    assert evaluate(load_recogniser(), wrong, pictures)[0]["single"]["object"] == 0.0


def test_neighbours_whose_probabilities_round_to_1_are_one_object(monkeypatch: pytest.MonkeyPatch):
    centre, kind = torch.full((1, 16, 16), -9.0), torch.zeros(1, 1, 16, 16)
    centre[0, 4, 4], centre[0, 4, 5] = 20.0, 21.0
    network = Recogniser(["a"], 16)
    monkeypatch.setattr(network, "forward", lambda x: (centre, kind))
    (found,) = network.detect([Image.new("RGB", (64, 64))])
    assert [(each.x, each.y) for each in found] == [(5.5 / 16, 4.5 / 16)]


def test_the_cells_around_a_peak_name_the_object(monkeypatch: pytest.MonkeyPatch):
    """The peak itself, next to the true centre, may have any class."""
    centre, kind = torch.full((1, 16, 16), -9.0), torch.zeros(1, 2, 16, 16)
    centre[0, 3:6, 4], centre[0, 4, 5] = 5.0, 6.0
    kind[0, 0, 3:6, 4], kind[0, 1, 4, 5] = 9.0, 9.0
    kind[0, 1, 3:6, 6] = 9.0  # no centre is there
    network = Recogniser(["right", "wrong"], 16)
    monkeypatch.setattr(network, "forward", lambda x: (centre, kind))
    (found,) = network.detect([Image.new("RGB", (64, 64))])
    assert [(each.name, each.x) for each in found] == [("right", 5.5 / 16)]


def test_recogniser_training_and_saving(tmp_path: Path):
    lines: list[str] = []
    network = train_recogniser(
        {each.name: render_sprite(each) for each in objects(3)}, steps=60, batch_size=8, width=16, report=lines.append
    )
    assert float(lines[-1].split(", ")[-1].split("%")[0]) > 60  # chance is a third
    save_recogniser(network, tmp_path)
    loaded = load_recogniser(tmp_path)
    image = rendered(compose(objects(3)[0], "teal"))
    assert loaded.names == network.names
    assert loaded.detect([image])[0][0].probability == pytest.approx(
        network.detect([image])[0][0].probability, abs=1e-2
    )
    assert loaded.embed([image]).shape == (1, 64)


def test_recogniser_training_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recogniser_training, "SAVE_EVERY", 2)
    checkpoint, sprites = tmp_path / "training.safetensors", {each.name: render_sprite(each) for each in objects(2)}
    given = {"batch_size": 2, "width": 16, "report": lambda line: None}
    whole = train_recogniser(sprites, steps=5, **given)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(recogniser_training, "loss", stop_after(3))
        train_recogniser(sprites, steps=5, checkpoint=checkpoint, **given)
    resumed: list[str] = []
    again = train_recogniser(sprites, steps=5, checkpoint=checkpoint, **{**given, "report": resumed.append})
    assert resumed[0] == "resumed after step 2 of 5" and again.sha256 == whole.sha256
    with pytest.raises(UserError, match="other drawings or settings"):
        train_recogniser(sprites, steps=6, checkpoint=checkpoint, **given)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        train_recogniser(sprites, steps=5, checkpoint=checkpoint, **given)
    save_recogniser(again, tmp_path)
    assert not checkpoint.exists()


def stop_after(steps: int):
    """Return a loss function that is interrupted when it is called after `steps` calls."""
    calls = iter(range(steps))

    def loss(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return recogniser_loss(*arguments)

    return loss


def test_missing_or_damaged_recogniser_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="contains no recogniser"):
        load_recogniser(tmp_path / "none")
    save_recogniser(Recogniser(["a"], 16), tmp_path)
    (tmp_path / "recogniser.json").write_text(json.dumps({"names": ["a", "b"], "width": 16}))
    with pytest.raises(UserError, match="damaged"):
        load_recogniser(tmp_path)


def test_empty_image_has_one_detection():
    with torch.no_grad():
        network = Recogniser(["a", "b"], 16)
        network.centre.bias.fill_(-20)
    assert len(network.detect([RED])[0]) == 1


def test_kid_equals_its_definition_and_is_unbiased():
    """Compare with the sums of the definition; for equal distributions, the mean over many samples is 0."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    expected = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    expected += np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    expected -= 2 * np.mean([k(x, y) for x in a for y in b])
    assert kid(a, b) == pytest.approx(expected)
    same = [kid(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    with pytest.raises(ValueError, match="two images"):
        kid(a[:1], b)
