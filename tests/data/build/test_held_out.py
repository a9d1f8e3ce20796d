"""`imagen data build --held-out`: a random, reproducible split."""

import json
from functools import partial

import numpy as np
import pytest
from command_line import run_imagen
from corpus import Corpus, encoded, picture
from encoders import WordEncoder

from imagen.data.build.dataset import build_source
from imagen.data.build.held_out import HeldOut
from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings
from imagen.data.shards.dataset import open_split, splits
from imagen.data.shards.inspect import inspect, rejects
from imagen.data.sources.base import Record
from imagen.errors import UserError
from imagen.text.config import TextConfig

N = 160


def build(out, **options):
    return build_source(partial(Corpus, N, 40), out, **{"workers": 1, "progress": False, "max_rejected": 1.0} | options)


def keys(folder, split="train"):
    dataset = open_split(folder, split)
    return [dataset.key(i) for i in range(len(dataset))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, build(out)


def test_both_splits_together_are_all_samples(whole, tmp_path):
    result = build(tmp_path, held_out=0.2, samples_per_shard=25)
    train, held_out = keys(tmp_path), keys(tmp_path, "heldout")
    assert sorted(train + held_out) == sorted(keys(whole[0]))
    assert result == whole[1] | {"held_out": len(held_out), "shards": result["shards"]}
    assert 0.1 < len(held_out) / (N - sum(whole[1]["rejected"].values())) < 0.3
    assert set(splits(tmp_path)) == {"train", "heldout"}
    assert inspect(tmp_path)["rejected"] == inspect(whole[0])["rejected"]
    assert len(list(rejects(tmp_path))) == sum(whole[1]["rejected"].values())


def test_the_choice_depends_on_seed_and_key_alone(whole, tmp_path):
    build(tmp_path / "a", held_out=0.2)
    chosen = HeldOut(0.2)
    assert all(chosen.includes(key) for key in keys(tmp_path / "a", "heldout"))
    assert not any(chosen.includes(key) for key in keys(tmp_path / "a"))
    build(tmp_path / "more", held_out=0.4)
    assert set(keys(tmp_path / "a", "heldout")) < set(keys(tmp_path / "more", "heldout"))
    build(tmp_path / "other", held_out=0.2, seed=1)
    assert keys(tmp_path / "a", "heldout") != keys(tmp_path / "other", "heldout")
    shares = [np.mean([HeldOut(0.02, seed).includes(f"k{i}") for i in range(20_000)]) for seed in range(3)]
    assert max(abs(share - 0.02) for share in shares) < 0.004  # four standard deviations


def test_a_killed_build_continues(tmp_path):
    build(tmp_path / "whole", held_out=0.2)
    (tmp_path / "whole" / "00002.report.json").unlink()
    before = keys(tmp_path / "whole", "heldout")
    build(tmp_path / "whole", held_out=0.2)
    assert keys(tmp_path / "whole", "heldout") == before
    with pytest.raises(UserError, match=r"a build with held_out 0\.2, not None"):
        build(tmp_path / "whole")
    with pytest.raises(UserError, match=r"a build with held_out 0\.2, not 0\.3"):
        build(tmp_path / "whole", held_out=0.3)


class Twins:
    """Each image twice, under keys that may fall into different splits, with embeddings."""

    in_place = False

    def parts(self):
        return [{"first": 0}, {"first": 20}]

    def read(self, part):
        for i in range(part["first"], part["first"] + 20):
            yield Record(
                key=f"k{i}",
                origin=f"{i}",
                image=encoded(picture(i // 2), "PNG"),
                caption=f"w{i}",
                embedding=np.full((2, 8), i, np.float32),
            )


def test_duplicates_are_in_neither_split_twice_and_embeddings_fit(tmp_path):
    result = build_source(
        Twins, tmp_path, workers=1, progress=False, held_out=0.5, encoder="toy", max_tokens=4, samples_per_shard=3
    )
    assert result["samples"] == 20 and result["rejected"] == {"duplicate": 20}
    found = []
    for split in ("train", "heldout"):
        dataset = open_split(tmp_path, split)
        embeddings = Embeddings(dataset, TextConfig(encoder="toy", width=8, max_tokens=4, unconditional="zeros"))
        for i in range(len(dataset)):
            number = int(dataset.key(i)[1:])
            found.append(number)
            assert embeddings.tokens(i, dataset.caption(i)).tolist() == [[number] * 8] * 2
    assert sorted(found) == list(range(0, 40, 2))
    assert result["held_out"] == len(open_split(tmp_path, "heldout")) > 0


def test_the_command(tmp_path, capsys):
    for i in range(30):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{i}.png").write_bytes(encoded(picture(i), "PNG"))
        (tmp_path / "photos" / f"{i}.txt").write_text(f"picture {i}")
    shards = str(tmp_path / "shards")
    arguments = ("data", "build", str(tmp_path / "photos"), "--out", shards, "--workers", "1")
    code, out, _ = run_imagen(*arguments, "--held-out", "0.3", "--json")
    held_out = json.loads(out)["held_out"]
    assert code == 0 and held_out == len(keys(shards, "heldout")) > 0
    assert encode_shards(shards, WordEncoder(), progress=False) == 2
    code, _, err = run_imagen(*arguments, "--held-out", "1")
    assert code == 2 and "--held-out" in err
    code, _, err = run_imagen("data", "build", str(tmp_path / "shards" / "train"), "--held-out", "0.3")
    assert code == 2 and "used in place" in err
    code, _, err = run_imagen(*arguments, "--cache", str(tmp_path / "cache"))
    assert code == 2 and "photos is a local source: omit --cache" in err
