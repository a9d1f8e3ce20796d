"""Find words of prompts that captions of training did not contain, and the names nearest to them."""

import json
import logging
import shutil

import torch

from imagen.cascade import Cascade
from imagen.cascade.card import cascade_card
from imagen.cascade.storage import read_manifest
from imagen.text.vocabulary import MOST_NAMES, NearestNames, Vocabulary, caption_words, untrained_words

CAPTIONS = ["A dog on a red background", "two horses, white background", "a yo-yo left of a box"]
VOCABULARY = Vocabulary(caption_words(CAPTIONS), ("dog", "horse", "yo-yo"))
AXES = {"zeppelin": (0.0, 1.0, 0.1), "dog": (1.0, 0.0, 0.0), "horse": (0.0, 0.2, 1.0), "yo-yo": (0.0, 1.0, 0.0)}


def encode(texts):
    """Return two tokens per text, whose mean is its axis."""
    return [torch.tensor(AXES[text]) + torch.tensor([[0.5], [-0.5]]) for text in texts]


def test_unknown_words():
    known = ["a dog", "Dogs, and the horse!", "boxes under a yo-yo", "", "one red dog"]
    assert [VOCABULARY.unknown(prompt) for prompt in known] == [[]] * 5
    assert VOCABULARY.unknown("a hot air balloon on a dog, 7 cats") == ["hot air balloon", "7 cats"]
    assert VOCABULARY.unknown("a cat beside a cat") == ["cat"]
    assert VOCABULARY.unknown("Übergröße") == ["übergröße"]


def test_spellings_of_known_words():
    captions = ["a cherry, a butterfly, a leaf, a knife", "woman’s hat", "a café", "ice cream", "two strawberries"]
    vocabulary = Vocabulary(caption_words([*captions, "yo-yo"]))
    plurals = ["cherries", "butterflies", "leaves", "knives", "a strawberry", "hats"]
    spellings = ["woman's hat", "the cherry's leaf", "cafe\u0301", "ice-cream", "a yo yo", "a yo‐yo", "CAFÉ", ""]
    assert [vocabulary.unknown(prompt) for prompt in plurals + spellings] == [[]] * 14
    assert vocabulary.unknown("cherrys leaved") == ["leaved"]
    assert vocabulary.unknown("红苹果, a t-shirt") == ["红苹果", "t shirt"]
    # As data sets of earlier versions have it.
    old = Vocabulary.from_json({"words": ["yo-yo", "woman’s", "hat"], "names": []})
    assert old.unknown("a woman's yo yo") == []


def test_punctuation_divides_parts():
    assert VOCABULARY.unknown("a hot air balloon, zeppelin; submarine. Owl (fox)") == [
        *("hot air balloon", "zeppelin", "submarine", "owl", "fox")
    ]
    assert VOCABULARY.unknown("猫、鱼。") == ["猫", "鱼"]


def test_very_many_names_are_not_encoded():
    def refuse(texts):
        raise AssertionError("encoding them all would take minutes")

    names = tuple(f"name {number}" for number in range(MOST_NAMES + 1))
    found = untrained_words(["a zeppelin"], Vocabulary(VOCABULARY.words, names), refuse)
    assert found == "never trained on 'zeppelin'; the images will probably show something else"


def test_nearest_names_by_the_cosine_of_mean_embeddings():
    nearest = NearestNames(VOCABULARY.names, encode)
    assert nearest("zeppelin") == ["yo-yo", "horse", "dog"]
    assert nearest("zeppelin", count=1) == ["yo-yo"]
    assert NearestNames([], encode)("zeppelin") == []


def test_names_are_encoded_once():
    seen = []
    nearest = NearestNames(VOCABULARY.names, lambda texts: seen.append(list(texts)) or encode(texts))
    for _ in range(2):
        nearest("zeppelin")
    assert seen == [list(VOCABULARY.names), ["zeppelin"], ["zeppelin"]]


def test_names_of_a_damaged_file_may_repeat_or_equal_the_phrase():
    each_once = lambda texts: encode(list(dict.fromkeys(texts)))  # noqa: E731  # as a cascade encodes
    assert NearestNames(["dog", "dog", "zeppelin", "horse"], each_once)("zeppelin") == ["horse", "dog"]


def test_the_warning_names_what_is_unknown_once():
    assert untrained_words(["a dog", "a red horse"], VOCABULARY, encode) is None
    assert untrained_words(["a zeppelin", "two zeppelin"], VOCABULARY, encode) == (
        "never trained on 'zeppelin' (nearest of the names it knows: yo-yo, horse, dog); "
        "the images will probably show something else"
    )
    without_names = Vocabulary(VOCABULARY.words)
    assert untrained_words(["a cat, a cow", "a fox"], without_names, encode) == (
        "never trained on 'cat', 'cow', 'fox'; the images will probably show something else"
    )
    many = ["cat", "cow", "owl", "fox", "bee"]
    assert "'owl' and 2 more;" in untrained_words(many, without_names, encode)


def test_json_keeps_a_vocabulary_and_refuses_other_values():
    assert Vocabulary.from_json(json.loads(json.dumps(VOCABULARY.to_json()))) == VOCABULARY
    unprintable = [{"words": ["a"], "names": [name]} for name in ("\x1b[31mdog", "dog\nimagen: done", "x" * 201)]
    for value in (
        None,
        [],
        {"words": ["a"]},
        {"words": ["a"], "names": "dog"},
        {"words": [1], "names": []},
        *unprintable,
    ):
        assert Vocabulary.from_json(value) is None


def test_the_packaged_cascade_knows_what_it_knows(caplog, tmp_path):
    cascade = Cascade.load("emoji", stages=1)
    assert {"octopus", "dog"} <= set(cascade.vocabulary.names) and len(cascade.vocabulary.names) == 96
    with caplog.at_level(logging.WARNING):
        cascade.sample(["two dogs on a teal background"], steps=1, device="cpu", progress=False)
        assert not caplog.messages
        cascade.sample(["a zeppelin"], steps=1, device="cpu", progress=False)
    (message,) = caplog.messages
    assert message.startswith("never trained on 'zeppelin' (nearest of the names it knows: airplane, helicopter,")
    cascade.save(tmp_path / "saved")
    card = cascade_card(read_manifest(tmp_path / "saved"), "me/emoji")
    assert "Trained on 96 names" in card and "abacus, airplane, bathtub" in card
    shutil.rmtree(tmp_path / "saved")
