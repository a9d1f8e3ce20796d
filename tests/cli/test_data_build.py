"""Test `imagen data build` and `imagen data inspect` on the command line."""

import base64
import gzip
import json
from collections import Counter

import numpy as np
import torch
from corpus import DEFECTS, REPEATS, encoded, pair, picture, write
from samples import read_sample

from imagen.data.embed.sidecar import Embeddings
from imagen.data.shards.dataset import open_split
from imagen.text.config import TextConfig
from imagen.text.encoder import load_text_encoder


def test_a_folder_is_built_and_inspected(imagen, error_of, tmp_path):
    write(tmp_path / "corpus", 400)
    build = ("data", "build", tmp_path / "corpus", "--out", tmp_path / "shards", "--workers", 1)
    out = imagen(*build)
    bad = REPEATS * len(DEFECTS)
    assert f"{400 - bad} samples in 4 shards, of 400 records\n  15 rejected: truncated picture\n" in out
    planted = Counter(DEFECTS[defect][0] for defect in (pair(i, 400).defect for i in range(400)) if defect)
    assert json.loads(imagen("data", "inspect", tmp_path / "shards", "--json"))["rejected"] == planted
    assert f"then: imagen data encode {tmp_path / 'shards'}" in out
    summary = json.loads(imagen("data", "inspect", tmp_path / "shards", "--json"))
    assert summary["splits"]["train"]["samples"] == 400 - bad and sum(summary["rejected"].values()) == bad
    table = imagen("data", "inspect", tmp_path / "shards")
    assert all(reason in table for reason, *_ in DEFECTS.values()) and "64 to 127" in table
    assert "page.html" in imagen("data", "inspect", tmp_path / "shards", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")

    assert "was built already, and its source is not read again" in imagen(*build)
    assert "75 of 400 records were rejected" in error_of(*build, "--max-rejected", 0.1)
    assert "with min_side 64, not 128" in error_of(*build, "--min-side", 128)
    assert "--max-aspect is 0.5; it must be at least 1" in error_of(*build, "--max-aspect", 0.5)
    assert "--max-rejected: 'x' is not a number" in error_of(*build, "--max-rejected", "x")
    assert "--out is missing" in error_of("data", "build", tmp_path / "corpus")


def test_inspect_reads_the_embedded_data_set(imagen, artifacts):
    summary = json.loads(imagen("data", "inspect", artifacts / "shards", "--json"))
    train, heldout = summary["splits"]["train"], summary["splits"]["heldout"]
    assert (train["samples"], heldout["samples"]) == (2 * 11 * 4, 2 * 4)
    assert [bar for bar in train["sides"] if bar[2]] == [[256, 511, 88]]
    (text,) = train["embeddings"]
    assert text["share"] == 1.0 and text["encoder"].endswith("all-MiniLM-L6-v2")


def test_a_folder_without_shards_is_a_one_line_error(error_of, tmp_path):
    assert "absent does not exist" in error_of("data", "inspect", tmp_path / "absent")
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    assert "contains no shards" in error_of("data", "inspect", tmp_path)


def test_pairs_in_the_paddle_line_formats_can_be_trained_on(imagen, artifacts, quick_options, tmp_path):
    dataset = open_split(artifacts / "shards")
    samples = [read_sample(dataset, i) for i in range(24)]
    images = [base64.b64encode(sample.members["256.png"]).decode() for sample in samples]
    steps = [
        *(*quick_options, "--train.steps", 20, "--optim.warmup_steps", 4, "--train.log_every", 10),
        *("--train.sample_every", 0, "--train.gap_every", 0, "--train.checkpoint_every", 20),
    ]
    torch.set_num_threads(1)

    rows = [f"0\tx\t{sample.caption}\ty\t{image}\tz\n" for sample, image in zip(samples, images, strict=True)]
    with gzip.open(tmp_path / "laion.gz", "wt", encoding="utf-8") as file:
        file.writelines(rows)
    imagen(
        "data", "build", tmp_path / "laion.gz", "--format", "laion_400m", "--out", tmp_path / "laion", "--workers", 1
    )
    imagen("data", "encode", tmp_path / "laion")
    imagen("train", "debug_64", "--data", tmp_path / "laion", "--out", tmp_path / "laion_run", *steps)

    text = TextConfig()
    tokens = load_text_encoder(text).encode([sample.caption for sample in samples])
    (tmp_path / "npy").mkdir()
    for i, tokens_LD in enumerate(tokens):  # padded to 128 tokens, as that implementation stores them
        padded, mask = np.zeros((128, text.width), np.float32), np.zeros(128, np.int64)
        padded[: len(tokens_LD)], mask[: len(tokens_LD)] = tokens_LD, 1
        np.save(tmp_path / f"npy/{i}.npy", padded)
        np.save(tmp_path / f"npy/{i}_mask.npy", mask)
    lines = [f"id{i}\tnpy/{i}.npy\tnpy/{i}_mask.npy\t{image}\n" for i, image in enumerate(images)]
    (tmp_path / "cc12m.txt").write_text("".join(lines))
    encoder_options = ("--encoder", text.encoder, "--max-tokens", text.max_tokens)
    build = ("data", "build", tmp_path / "cc12m.txt", "--format", "cc12m_base64", "--out", tmp_path / "cc12m")
    imagen(*build, *encoder_options, "--workers", 1)
    stored = Embeddings(open_split(tmp_path / "cc12m"), text)
    assert torch.equal(stored.tokens(3, ""), tokens[3].bfloat16().float())
    imagen("train", "debug_64", "--data", tmp_path / "cc12m", "--out", tmp_path / "cc12m_run", *steps)

    for run in ("laion_run", "cc12m_run"):
        first, last = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        assert last["step"] == 20 and last["loss"] < min(1.5, 0.8 * first["loss"]) and "bad_samples" not in last
