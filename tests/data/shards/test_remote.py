"""Compare shards from a local web server and from fsspec's memory store with the same shards on disk."""

import dataclasses
import http.server
import io
import itertools
import multiprocessing
import shutil
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


from loading import open_loader  # noqa: E402

from imagen.data.embed.encode import encode_shards  # noqa: E402
from imagen.data.loading.config import DataConfig  # noqa: E402
from imagen.data.shards import remote  # noqa: E402
from imagen.data.shards.dataset import ShardedDataset, open_split, splits  # noqa: E402
from imagen.data.shards.remote import CacheConfig, as_url  # noqa: E402
from imagen.data.shards.writer import ShardWriter  # noqa: E402
from imagen.errors import UserError  # noqa: E402

TARS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    encoder: str = "tests/fake"
    revision: str = "main"
    width: int = 8
    max_tokens: int = 16
    unconditional: str = "zeros"


class FakeEncoder:
    config = Text()

    def lengths(self, captions):
        return [3 for _ in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions):
        return [torch.linspace(-3, sum(caption.encode()), 3 * 8).view(3, 8) for caption in captions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write 30 samples in 6 shards and 5 in a held-out shard: noise images of 16 pixels, with embeddings."""
    folder = tmp_path_factory.mktemp("store")
    random = np.random.default_rng(0)
    for split, count in (("train", 5 * TARS), ("heldout", 5)):
        with ShardWriter(folder / split, 5) as writer:
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
                writer.write({"__key__": f"{split}{i:02d}", "png": file.getvalue(), "txt": f"picture {i}".encode()})
    encode_shards(folder, FakeEncoder(), progress=False)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with listings. `server.short` maps file names to the number of responses to truncate."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        with self.server.guard:
            self.server.asked.append(self.path)
            broken = self.server.short.get(name, 0) > 0
            self.server.short[name] = self.server.short.get(name, 0) - 1
        if not broken:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()[:-600]
        self.send_response(200)
        # Consistent with the body: only the expected size reveals the truncation.
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def list_directory(self, path):
        if self.server.lists:
            return super().list_directory(path)
        self.send_error(404)

    def send_error(self, code, *rest):
        super().send_error(self.server.missing if code == 404 else code, *rest)


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.guard, self.asked, self.short = threading.Lock(), [], {}
        self.lists, self.missing = True, 404
        self.url = f"http://127.0.0.1:{self.server_port}"

    def tars(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".tar")]


@pytest.fixture
def server(folder):
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def short_retry_waits(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def memory(folder):
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/corpus", recursive=True)
    yield "memory://corpus"
    store.rm("/corpus", recursive=True)


def batches(address, cache: Path | None, *, workers: int = 0, count: int = 8, **options) -> list:
    config = DataConfig(workers=workers, window=2, cache=None if cache is None else str(cache), **options)
    loader = open_loader(address, config, resolution=16, text=Text(), batch_size=6, seed=1)
    found = itertools.islice(loader, count)
    return [(b.keys, b.captions, b.image.numpy().tobytes(), b.text.numpy().tobytes()) for b in found]


# Same data


@pytest.mark.parametrize("store", ["http", "memory", "file"])
def test_a_remote_store_gives_the_same_batches_as_the_disk(folder, server, memory, tmp_path, store):
    address = {"http": server.url, "memory": memory, "file": folder.as_uri()}[store]
    expected = batches(folder, None)
    assert batches(address, tmp_path) == expected
    assert batches(Path(address), tmp_path, workers=2) == expected  # the command line converts its arguments to Path
    assert (
        list(splits(address)) == ["train", "heldout"]
        and len(open_split(address, "heldout", CacheConfig(folder=tmp_path))) == 5
    )


def test_tars_are_downloaded_once_for_all_workers_and_later_runs(server, folder, tmp_path):
    assert batches(server.url, tmp_path, workers=2) == batches(folder, None)
    assert sorted(server.tars()) == sorted(set(server.tars()))
    server.asked.clear()
    batches(server.url, tmp_path)
    assert server.tars() == [] and not any("safetensors" in path for path in server.asked)


@pytest.mark.parametrize("missing", [404, 403])  # 403: S3, for a bucket without permission to list
def test_a_server_without_listings_needs_the_names_of_shards(folder, server, tmp_path, missing):
    server.lists, server.missing = False, missing
    with pytest.raises(UserError, match=r"contains no shards .*one per line, in http://.*shards\.txt"):
        batches(server.url, tmp_path / "cache")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for split in ("train", "heldout"):
        names = sorted(path.name for path in (copy / split).glob("*.tar"))
        (copy / split / "shards.txt").write_text(
            "\n".join(names[:2] + [name.removesuffix(".tar") for name in names[2:]])
        )
    with Server(copy) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        other.lists, other.missing = False, missing
        assert batches(other.url, tmp_path / "cache") == batches(folder, None)
        other.shutdown()


def test_files_that_changed_in_the_store_are_downloaded_again(folder, tmp_path):
    copy = shutil.copytree(folder / "train", tmp_path / "copy")
    cache = CacheConfig(folder=tmp_path / "cache")
    assert ShardedDataset(copy.as_uri(), cache).caption(0) == "picture 0"
    with ShardWriter(copy, 5, overwrite=True) as writer:
        writer.write({"__key__": "new", "txt": b"another"})
    assert ShardedDataset(copy.as_uri(), cache).caption(0) == "another"


# Size limit


def test_the_cache_stays_within_its_limit_and_retains_recent_shards(server, folder, tmp_path):
    one = (folder / "train" / "00000.tar").stat().st_size
    data = open_split(server.url, cache=CacheConfig(folder=tmp_path, gb=3.5 * one / 1e9))
    here = lambda: sorted(path.name for path in tmp_path.glob("*/*.tar"))  # noqa: E731
    for i, shards in ((0, "0"), (5, "01"), (10, "012"), (15, "123"), (20, "234")):
        data.read(i, "png")
        assert here() == [f"0000{shard}.tar" for shard in shards]
    fresh = open_split(server.url, cache=CacheConfig(folder=tmp_path, gb=3.5 * one / 1e9))
    fresh.read(10, "png")  # shard 2 again, from the cache, so shard 3 is now the least recently used
    fresh.read(25, "png")
    assert here() == ["00002.tar", "00004.tar", "00005.tar"]
    local = ShardedDataset(folder / "train")
    # Open handles on deleted tars, and new downloads.
    assert all(data.read(i, "png") == local.read(i, "png") for i in range(30))
    assert len(data.open_tars) <= 4


def test_a_tar_in_use_survives_its_deletion(server, folder, tmp_path):
    data = open_split(server.url, cache=CacheConfig(folder=tmp_path))
    expected = data.read(0, "png")
    for tar in tmp_path.glob("*/*.tar"):
        tar.unlink()
    assert data.read(0, "png") == expected and len(server.tars()) == 1


def test_processes_that_share_a_cache_stay_within_its_limit(folder, tmp_path):
    """Each process reads all shards in another order, through a cache with room for two and a half."""
    one = (folder / "train" / "00000.tar").stat().st_size
    cache, address = CacheConfig(folder=tmp_path, gb=2.5 * one / 1e9), (folder / "train").as_uri()
    local = ShardedDataset(folder / "train")
    expected = [local.read(i, "png") for i in range(30)]

    def read(seed: int) -> None:
        data = ShardedDataset(address, cache)
        for i in np.random.default_rng(seed).permutation(30):
            assert data.read(int(i), "png") == expected[i]
            with remote.locked(tmp_path / ".lock"):  # holding the lock prevents deletions
                assert sum(path.stat().st_size for path in tmp_path.glob("*/*.tar")) <= cache.bytes

    processes = [multiprocessing.get_context("fork").Process(target=read, args=(seed,)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob("*/.*.part"))


def test_a_cache_deleted_while_in_use_is_recreated(server, folder, tmp_path):
    data = open_split(server.url, cache=CacheConfig(folder=tmp_path / "cache"))
    assert data.key(0) == "train00"  # the index is in memory already
    shutil.rmtree(tmp_path / "cache")
    assert data.read(0, "png") == ShardedDataset(folder / "train").read(0, "png")
    with pytest.raises(UserError, match=r"cannot read .*00001\.index\.safetensors"):
        data.read(5, "png")


def test_files_of_a_killed_process_are_removed(server, folder, tmp_path):
    one = (folder / "train" / "00000.tar").stat().st_size
    data = open_split(server.url, cache=CacheConfig(folder=tmp_path, gb=1.5 * one / 1e9))
    left = data.folder / f".00003.tar.{one}.part"
    left.write_bytes(b"half")
    data.read(0, "png")
    assert not left.exists()


@pytest.mark.parametrize(
    "shards, message", [(0.5, "less than one shard|is too small for"), (3.5, "is too small for the 4")]
)
def test_a_cache_that_is_too_small_is_rejected_at_the_start(server, folder, tmp_path, shards, message):
    one = (folder / "train" / "00000.tar").stat().st_size
    with pytest.raises(UserError, match=f"data.cache_gb .*{message}"):
        batches(server.url, tmp_path, cache_gb=shards * one / 1e9)


# Errors


@pytest.mark.parametrize("name", ["00001.tar", "00001.index.safetensors", "00002.tests-fake.16.text.safetensors"])
def test_a_truncated_download_is_detected_and_retried(folder, server, tmp_path, name, caplog):
    server.short[name] = 2
    assert batches(server.url, tmp_path) == batches(folder, None)
    assert caplog.text.count("trying again") >= 2 and name in caplog.text


def test_a_repeatedly_truncated_download_is_a_one_line_error(server, tmp_path):
    server.short["00003.tar"] = 1000
    with pytest.raises(
        UserError, match=r"^cannot read http://.*/train/00003\.tar: .*bytes arrived of .*; check [^\n]*$"
    ):
        batches(server.url, tmp_path)
    assert not list(tmp_path.glob("*/00003.tar")) and not list(tmp_path.glob("*/.*.part"))


@pytest.mark.parametrize("missing, message", [
    ("00003.tar", r"00003\.tar is missing"),
    ("00003.index.safetensors", r"00003\.index\.safetensors is missing; index the shards on a disk"),
    ("00003.tests-fake.16.text.safetensors", "has no text embeddings of 'tests/fake'"),
])  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_missing_files_are_a_one_line_error(folder, tmp_path, missing, message, workers):
    copy = shutil.copytree(folder / "train", tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(UserError, match=message) as caught:
        batches(copy.as_uri(), tmp_path / "cache", workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address, message", [
    ("http://127.0.0.1:9", r"^cannot read http://127\.0\.0\.1:9/.*: .*; check the address"),
    ("memory://nothing", r"^memory://nothing contains no shards"),
    ("nonsense://bucket/corpus", r"^nonsense://bucket/corpus/train: .*nonsense"),
])  # fmt: skip
def test_invalid_addresses_are_rejected(tmp_path, address, message):
    with pytest.raises(UserError, match=message) as caught:
        batches(address, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_store_without_its_package_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"^cannot read s3://bucket/corpus/train, a package is missing: Install s3fs"):
        batches("s3://bucket/corpus", tmp_path)


def test_a_full_disk_is_reported(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    data = open_split(server.url, cache=CacheConfig(folder=tmp_path))
    monkeypatch.setattr(remote, "download", full)
    with pytest.raises(UserError, match=r"cannot write .*00000\.tar: No space left"):
        data.read(0, "png")


def test_a_store_cannot_be_encoded_in_place(memory):
    with pytest.raises(UserError, match="is read-only"):
        encode_shards(memory, FakeEncoder(), progress=False)


def test_urls_are_recognised():
    assert as_url("s3://bucket/a/b/") == as_url(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert as_url("file:///data/x") == as_url(Path("file:///data/x")) == "file:///data/x"
    assert [as_url(address) for address in ("shards", "/data/shards", Path("a:b/c"), "C:/shards", "")] == [None] * 5
