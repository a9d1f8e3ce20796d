"""Test builds: good pairs become samples, bad ones are listed, and neither kills nor more processes change a byte."""

import io
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import DEFECTS, Corpus, encoded, pair, picture
from PIL import Image
from samples import read_sample

from imagen.data.build.dataset import build_source, check_rejected
from imagen.data.build.quality import Limits
from imagen.data.embed.sidecar import Embeddings, matches_sidecar
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.index import index_path
from imagen.data.shards.tar_samples import scan_tar
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources.base import Part, Record
from imagen.errors import UserError
from imagen.text.config import TextConfig

N = 2000


class MemorySource:
    """A source of given records. `read_parts` lists the parts that were read."""

    in_place = False

    def __init__(self, *parts: list[Record]):
        self.records = parts
        self.read_parts: list[int] = []

    def parts(self) -> list[Part]:
        return [{"part": number} for number in range(len(self.records))]

    def read(self, part: Part) -> Iterator[Record]:
        self.read_parts.append(part["part"])
        yield from self.records[part["part"]]


class SlowCorpus(Corpus):
    """The corpus, read at 3 ms per record."""

    def read(self, part: Part) -> Iterator[Record]:
        for record in super().read(part):
            time.sleep(0.003)
            yield record


class TarSource:
    """The tars of a folder and its splits as a source: one record per sample, in order."""

    in_place = True

    def __init__(self, folder: Path):
        self.folder = folder

    def parts(self) -> list[Part]:
        return [{"file": str(tar.relative_to(self.folder))} for tar in sorted(self.folder.rglob("*.tar"))]

    def tar(self, part: Part) -> Path:
        return self.folder / part["file"]

    def read(self, part: Part) -> Iterator[Record]:
        data = self.tar(part).read_bytes()
        for key, places in scan_tar(self.tar(part)).samples.items():
            members = {extension: data[first : first + size] for extension, (first, size) in places.items()}
            image = next((value for extension, value in members.items() if extension not in ("txt", "json")), None)
            name = f"{part['file'].removesuffix('.tar')}/{key}".replace(".", "_")
            yield Record(key=name, origin=part["file"], image=image, caption=members.get("txt", members.get("json")))


def record(key: str, image: int | bytes = 0, caption: str = "words", **more: object) -> Record:
    data = encoded(picture(image), "PNG") if isinstance(image, int) else image
    return Record(key=key, origin=f"{key} of memory", image=data, caption=caption, **more)


def run_build(source: object, out: Path | None, **options: object) -> dict:
    return build_source(lambda: source, out, **{"workers": 1, "progress": False, **options})


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rejection_reasons(folder: Path) -> dict[str, str]:
    """Return the reasons in the quarantine tables by key."""
    rows = [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]
    assert len(rows) == len({row["key"] for row in rows})
    return {row["key"]: row["reason"] for row in rows}


def sample_keys(folder: Path) -> list[str]:
    data = ShardedDataset(folder)
    return [data.key(i) for i in range(len(data))]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the corpus in one process without interruption."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build_source(partial(Corpus, N), out, workers=1, progress=False)
    return out


def test_every_defect_is_rejected_with_its_reason_and_every_good_pair_becomes_a_sample(built):
    made = {Path(p.name).stem: p for p in (pair(i, N) for i in range(N))}
    bad = {key: p.reason for key, p in made.items() if p.defect}
    assert len(DEFECTS) >= 20 and Counter(p.defect for p in made.values() if p.defect) == dict.fromkeys(DEFECTS, 3)
    assert rejection_reasons(built) == bad

    data = ShardedDataset(built)
    assert sample_keys(built) == [key for key in made if key not in bad]
    for i in range(len(data)):
        sample, original = read_sample(data, i), made[data.key(i)]
        (extension,) = sample.members.keys() - {"txt"}
        # Converted from gif, bmp or tiff: the same pixels.
        if extension == "png" and not original.image.startswith(b"\x89PNG"):
            image = Image.open(io.BytesIO(original.image))
            if image.mode == "I;16":
                expected = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
            elif image.mode == "F":
                expected = np.repeat(np.rint(np.asarray(image) * 255).astype(np.uint8)[..., None], 3, 2)
            else:
                expected = np.asarray(image.convert("RGB"))
            assert np.array_equal(pixels(sample.members["png"]), expected), original.name
        else:
            assert sample.members[extension] == original.image
        caption = json.loads(original.json)["caption"].encode() if original.json else original.caption
        assert sample.caption == caption.decode("utf-8-sig").strip()

    result = json.loads((built / "build.json").read_text())["result"]
    assert (result["records"], result["samples"], result["parts"]) == (N, N - len(bad), 8)
    assert result["rejected"] == dict(Counter(bad.values()))


def test_two_processes_write_the_same_bytes(built, tmp_path):
    build_source(partial(Corpus, N), tmp_path / "two", workers=2, progress=False)
    assert read_files(tmp_path / "two") == read_files(built)


def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(built, tmp_path):
    out, kills = tmp_path / "killed", 0
    for wait in np.random.default_rng(0).uniform(0.05, 0.7, size=10):
        child = os.fork()
        if child == 0:
            build_source(partial(Corpus, N), out, workers=1, progress=False)
            os._exit(0)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills >= 3
    build_source(partial(Corpus, N), out, workers=1, progress=False)
    assert read_files(out) == read_files(built)


def test_a_build_killed_while_removing_duplicates_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    embedding = np.ones((2, 4), np.float32)
    source = MemorySource([record("a", 1, embedding=embedding), record("b", 1, embedding=embedding)], [])
    options = {"encoder": "some/encoder", "max_tokens": 8}
    run_build(source, tmp_path / "whole", **options)
    for step in ("index_shard", "write_sidecar", "write_lines"):
        with monkeypatch.context() as patch:
            patch.setattr(f"imagen.data.build.duplicates.{step}", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_build(source, tmp_path / step, **options)
        (tmp_path / step / ".00000-000.e.text.safetensors.1.tmp").write_bytes(b"half")  # a kill may leave such a file
        (tmp_path / step / ".00000.duplicates.jsonl.1.tmp").write_bytes(b"half")
        run_build(source, tmp_path / step, **options)
        assert read_files(tmp_path / step) == read_files(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_worker_processes_end_with_a_killed_build(tmp_path):
    child = os.fork()
    if child == 0:
        build_source(partial(SlowCorpus, 4000, 40), tmp_path / "out", workers=2, progress=False)
        os._exit(0)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("*.report.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    tasks = Path(f"/proc/{child}/task").glob("*/children")
    workers = [Path("/proc", pid) for task in tasks for pid in task.read_text().split()]
    workers = [path for path in workers if b"spawn_main" in (path / "cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while any(path.exists() and "Z" not in (path / "stat").read_text().split()[2] for path in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_finished_parts_are_not_read_again(tmp_path):
    source = MemorySource([record("a", 1)], [record("b", 2)], [record("c", 3)])
    result = run_build(source, tmp_path / "out")
    # Once to look for embeddings, once to build.
    assert result["samples"] == 3 and source.read_parts == [0, 1, 2, 0, 1, 2]
    assert run_build(source, tmp_path / "out") == result and source.read_parts == [0, 1, 2, 0, 1, 2]
    before = read_files(tmp_path / "out")
    (tmp_path / "out" / "00001-000.tar").unlink()  # only that part is built again
    assert run_build(source, tmp_path / "out") == result and source.read_parts == [0, 1, 2, 0, 1, 2, 1]
    assert read_files(tmp_path / "out") == before


def test_shards_have_the_requested_size(tmp_path):
    run_build(MemorySource([record(f"k{i}", i) for i in range(7)], [record("last", 9)]), tmp_path, samples_per_shard=3)
    data = ShardedDataset(tmp_path)
    assert data.shards == ["00000-000", "00000-001", "00000-002", "00001-000"] and data.sizes.tolist() == [3, 3, 1, 1]


def test_duplicates_across_parts_are_rejected(tmp_path):
    source = MemorySource(
        [record("a", 1), record("b", 2)], [record("c", 2), record("d", 3)], [record("e", 3), record("f", 1)]
    )
    run_build(source, tmp_path / "out")
    assert sample_keys(tmp_path / "out") == ["a", "b", "d"]
    assert rejection_reasons(tmp_path / "out") == dict.fromkeys("cef", "duplicate")
    rows = [json.loads(line) for line in (tmp_path / "out" / "00002.duplicates.jsonl").read_text().splitlines()]
    assert [row["detail"] for row in rows] == [
        "the same pixels as d in 00001-000.tar",
        "the same pixels as a in 00000-000.tar",
    ]
    assert list(scan_tar(tmp_path / "out" / "00001-000.tar").samples) == ["c", "d"]  # the tar still holds duplicates
    run_build(source, tmp_path / "all", keep_duplicates=True)
    assert sample_keys(tmp_path / "all") == list("abcdef") and rejection_reasons(tmp_path / "all") == {}


def test_embeddings_become_sidecars_without_duplicates(tmp_path):
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(1 + i, 6)).astype(np.float32) for i in range(5)]
    broken = np.full((2, 6), np.nan, np.float32)
    images = [1, 2, 2, 3, 1]
    records = [record(f"k{i}", images[i], f"caption {i}", embedding=made[i]) for i in range(5)]
    source = MemorySource(records[:3], [record("nan", 7, embedding=broken), *records[3:]])
    run_build(source, tmp_path, encoder="some/encoder", max_tokens=5, samples_per_shard=2)
    text = TextConfig(encoder="some/encoder", max_tokens=5, width=6)
    data = open_split(tmp_path)
    assert [data.key(i) for i in range(len(data))] == ["k0", "k1", "k3"]
    assert data.sizes.tolist() == [2, 0, 1]  # the second shard held one duplicate
    embeddings = Embeddings(data, text)
    for i, number in enumerate([0, 1, 3]):
        expected = torch.from_numpy(made[number]).bfloat16().float()
        assert torch.equal(embeddings.tokens(i, f"caption {number}"), expected)
    assert all(matches_sidecar(data, shard, text) for shard in range(3))
    assert torch.equal(embeddings.unconditional(), torch.zeros(1, 6))
    with pytest.raises(UserError, match=r"no embedding of \"\"; use --text\.unconditional zeros"):
        Embeddings(
            data, TextConfig(encoder="some/encoder", max_tokens=5, width=6, unconditional="empty")
        ).unconditional()


def test_the_most_common_embedding_dimension_is_used(tmp_path):
    records = [record(f"k{i}", i, embedding=np.ones((2, 4 if i else 3))) for i in range(4)]
    run_build(MemorySource(records), tmp_path, encoder="e", max_tokens=2)
    assert rejection_reasons(tmp_path) == {"k0": "embedding width"}


def test_embeddings_require_the_name_of_their_encoder(tmp_path):
    with_text = MemorySource([record("k", embedding=np.ones((1, 4)))])
    with pytest.raises(UserError, match=r"k of memory has an embedding; name its encoder: --encoder NAME"):
        run_build(with_text, tmp_path / "a")
    run_build(with_text, tmp_path / "a", encoder="e", max_tokens=1)  # the error left nothing behind
    with pytest.raises(UserError, match="must be given together"):
        run_build(with_text, tmp_path / "b", encoder="e")
    with pytest.raises(UserError, match="has no embeddings; omit --encoder"):
        run_build(MemorySource([record("k")]), tmp_path / "c", encoder="e", max_tokens=4)


def test_a_repeated_key_is_rejected(tmp_path):
    run_build(MemorySource([record("a", 1), record("a", 2), record("b", 3)]), tmp_path)
    assert sample_keys(tmp_path) == ["a", "b"] and rejection_reasons(tmp_path) == {"a": "repeated key"}


def test_too_many_rejected_records_fail_the_build_after_it_is_written(tmp_path):
    source = MemorySource(
        [record("a", 1), record("b", b"no picture"), record("c", 2, "")], [record("d", 1), record("e", 3)]
    )
    wanted = r"3 of 5 records were rejected, more than --max-rejected 0\.5 allows: duplicate 1, empty caption 1, not a"
    for _ in range(2):  # the second build reads nothing
        with pytest.raises(UserError, match=wanted):
            run_build(source, tmp_path / "out")
    assert sample_keys(tmp_path / "out") == ["a", "e"] and source.read_parts == [0, 1, 0, 1]
    assert run_build(source, tmp_path / "out", max_rejected=0.6)["samples"] == 2
    with pytest.raises(UserError, match="1 of 1 records were rejected"):
        run_build(MemorySource([record("b", b"no picture")]), tmp_path / "none", max_rejected=1)
    with pytest.raises(UserError, match="the source has no records"):
        run_build(MemorySource([]), tmp_path / "empty")


def test_folders_of_other_builds_and_foreign_files_are_rejected(tmp_path):
    source = MemorySource([record("a", 1)])
    run_build(source, tmp_path / "out")
    before = read_files(tmp_path)
    for options, words in [
        ({"limits": Limits(min_side=32)}, "with min_side 64, not 32"),
        ({"samples_per_shard": 5}, "with samples_per_shard 1000, not 5"),
        ({"keep_duplicates": True}, "with keep_duplicates False, not True"),
    ]:
        with pytest.raises(UserError, match=f"out contains a build {words}; choose another folder"):
            run_build(source, tmp_path / "out", **options)
    with pytest.raises(UserError, match="a build of another source"):
        run_build(MemorySource([record("a", 1)], []), tmp_path / "out")
    with pytest.raises(UserError, match="is not an empty folder"):
        run_build(source, tmp_path)
    with pytest.raises(UserError, match="--out is missing"):
        run_build(source, None)
    with pytest.raises(UserError, match="--max-rejected is 2"):
        run_build(source, tmp_path / "other", max_rejected=2)
    assert read_files(tmp_path) == before


# --- shards that are used in place ---


@pytest.fixture
def tars(tmp_path) -> Path:
    """Write tars without indexes. train: a, b (too small), c. heldout: d (the pixels of c), e (a bmp), f."""
    with ShardWriter(tmp_path / "s" / "train") as writer:
        writer.write({"__key__": "a", "png": encoded(picture(1), "PNG"), "txt": b"one"})
        writer.write({"__key__": "b", "png": encoded(picture(2, 20, 20), "PNG"), "txt": b"two"})
        writer.write({"__key__": "c", "jpg": encoded(picture(3), "PNG"), "txt": b"three", "json": b"{}"})
    with ShardWriter(tmp_path / "s" / "heldout") as writer:
        writer.write({"__key__": "d", "png": encoded(picture(3), "PNG"), "txt": b"four"})
        writer.write({"__key__": "e", "bmp": encoded(picture(5), "BMP"), "txt": b"five"})
        writer.write({"__key__": "f", "png": encoded(picture(6), "PNG"), "txt": b"six"})
    for path in (tmp_path / "s").rglob("*.index.safetensors"):
        path.unlink()
    return tmp_path / "s"


def tar_contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in read_files(folder).items() if name.endswith(".tar")}


def test_tars_are_indexed_in_place(tars):
    before = tar_contents(tars)
    result = run_build(TarSource(tars), None, root=tars)
    assert tar_contents(tars) == before and (result["samples"], result["shards"]) == (3, 2)
    # Parts are sorted, so heldout comes first.
    assert sample_keys(tars / "heldout") == ["d", "f"] and sample_keys(tars / "train") == ["a"]
    assert rejection_reasons(tars) == {"train/00000/b": "too small", "c": "duplicate", "heldout/00000/e": "format"}
    assert read_sample(ShardedDataset(tars / "train"), 0).caption == "one"
    assert not list(tars.rglob(".*"))


def test_captions_that_training_cannot_read_in_place_are_ignored(tmp_path):
    with ShardWriter(tmp_path / "s") as writer:
        writer.write({"__key__": "a", "png": encoded(picture(1), "PNG"), "json": b"words"})
        writer.write({"__key__": "b", "png": encoded(picture(2), "PNG"), "txt": b"words"})
    run_build(TarSource(tmp_path / "s"), None, root=tmp_path / "s")
    assert sample_keys(tmp_path / "s") == ["b"] and rejection_reasons(tmp_path / "s") == {"00000/a": "missing caption"}
    run_build(TarSource(tmp_path / "s"), tmp_path / "copied", root=tmp_path / "s", copy=True)
    assert ShardedDataset(tmp_path / "copied").shard_captions(0) == [["words"], ["words"]]


def test_only_added_or_changed_tars_are_checked_again(tars):
    run_build(TarSource(tars), None, root=tars)
    reports = {path: path.stat().st_mtime_ns for path in tars.rglob("*.report.json")}
    with ShardWriter(tars / "train", prefix="more-") as writer:
        writer.write({"__key__": "g", "png": encoded(picture(1), "PNG"), "txt": b"seven"})
        writer.write({"__key__": "h", "png": encoded(picture(8), "PNG"), "txt": b"eight"})
    assert run_build(TarSource(tars), None, root=tars)["samples"] == 4
    assert sample_keys(tars / "train") == ["a", "h"]
    assert all(path.stat().st_mtime_ns == time for path, time in reports.items())
    # Without d, c is no longer a duplicate.
    for path in (tars / "heldout").glob("00000.*"):
        path.unlink()
    with ShardWriter(tars / "heldout") as writer:
        writer.write({"__key__": "z", "png": encoded(picture(9), "PNG"), "txt": b"nine"})
    assert run_build(TarSource(tars), None, root=tars)["samples"] == 4
    assert sample_keys(tars / "train") == ["a", "c", "h"] and not (tars / "train" / "00000.duplicates.jsonl").exists()


def test_the_complete_samples_of_a_truncated_tar_are_used(tars):
    tar = tars / "train" / "00000.tar"
    os.truncate(tar, scan_tar(tar).samples["b"]["png"][0])  # truncate at the image of b
    run_build(TarSource(tars), None, root=tars, max_rejected=0.9)
    assert sample_keys(tars / "train") == ["a"] and index_path(tar).exists()


def test_copying_needs_an_output_folder_and_in_place_use_rejects_one(tars, tmp_path):
    with pytest.raises(UserError, match=r"used in place: omit --out .*, or give --copy"):
        run_build(TarSource(tars), tmp_path / "out", root=tars)
    with pytest.raises(UserError, match=r"used in place; --samples-per-shard writes new ones"):
        run_build(TarSource(tars), None, root=tars, samples_per_shard=2)
    run_build(TarSource(tars), tmp_path / "out", root=tars, copy=True)
    data = ShardedDataset(tmp_path / "out")
    assert [data.key(i) for i in range(len(data))] == [f"heldout/00000/{k}" for k in "def"] + ["train/00000/a"]
    assert list(data.extensions(1)) == ["png", "txt"]  # the bmp, converted
    run_build(TarSource(tars), None, root=tars)
    with pytest.raises(UserError, match=r"contains a build with min_side 64, not 16; delete .*build\.json to check"):
        run_build(TarSource(tars), None, root=tars, limits=Limits(min_side=16))
    (tars / "build.json").unlink()
    assert run_build(TarSource(tars), None, root=tars, limits=Limits(min_side=16))["samples"] == 4
    assert sample_keys(tars / "train") == ["a", "b"]


@pytest.mark.parametrize(
    "kind, words",
    [
        ("folder", ["missing caption: put captions beside the images (KEY.txt), or give --caption-from folder"]),
        ("table", ["missing caption: name the column of captions with --caption-column", "missing file: make"]),
        ("tars in place", ["missing caption: give --copy --out", "animation: give --first-frame"]),
    ],
)
def test_errors_name_only_options_that_the_source_has(tmp_path, kind, words):
    rejected = {"missing caption": 5, "missing file": 2, "animation": 1, "second picture": 9}
    with pytest.raises(UserError) as error:
        check_rejected(tmp_path, {"records": 29, "samples": 12, "rejected": rejected}, 0.3, kind)
    for text in ["8 of 20 records", "--max-rejected 0.4 accepts the data unchanged", *words]:
        assert text in str(error.value)
    assert ("--image-column" in str(error.value)) == (kind == "table")
