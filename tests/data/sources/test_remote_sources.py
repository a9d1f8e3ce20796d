"""Sources in a store. The Hugging Face hub is imitated: by a local folder, and by a local server for HfFileSystem."""

import base64
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from importlib import import_module

import pytest
from command_line import run_imagen
from corpus import encoded, picture
from hub import serve_hub

fsspec = pytest.importorskip("fsspec")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402
from fsspec.implementations.dirfs import DirFileSystem  # noqa: E402
from fsspec.implementations.local import LocalFileSystem  # noqa: E402

from imagen.data.build.dataset import build  # noqa: E402
from imagen.data.shards import remote  # noqa: E402
from imagen.data.shards.dataset import open_split  # noqa: E402
from imagen.data.shards.writer import ShardWriter  # noqa: E402
from imagen.data.sources import open_source  # noqa: E402
from imagen.data.sources.remote import hub_url  # noqa: E402
from imagen.errors import UserError  # noqa: E402


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS", (0.0, 0.0, 0.0))


@pytest.fixture
def hub(tmp_path):
    """The folder of the fake hub; paths in it begin with datasets/, as those of HfFileSystem do."""
    root = tmp_path / "hub"

    class FakeHub(DirFileSystem):
        protocol = "hf"

        def __init__(self, **options):
            super().__init__(path=str(root), fs=LocalFileSystem(), skip_instance_cache=True)

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("hf://").rstrip("/")

    fsspec.register_implementation("hf", FakeHub, clobber=True)
    yield root / "datasets"
    import_module("fsspec.registry")._registry.pop("hf")


@pytest.fixture
def store(tmp_path):
    """A writable store, as s3 is; `build` runs in this process, where memory:// exists."""
    memory = fsspec.filesystem("memory")
    yield lambda name, data: memory.pipe_file(f"/bucket/{name}", data)
    memory.rm("/bucket", recursive=True)


def image(i):
    return encoded(picture(i), "PNG")


def parquet(count, first=0):
    rows = {
        "image": [{"bytes": image(first + i), "path": f"{i}.png"} for i in range(count)],
        "text": [f"picture {first + i}" for i in range(count)],
    }
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, row_group_size=3)
    return file.getvalue()


def go(url, tmp_path, **options):
    return build(url, tmp_path / "out", workers=1, progress=False, **{"cache": tmp_path / "cache"} | options)


def test_parquet_on_the_hub_is_streamed_and_equals_the_same_files_on_disk(hub, tmp_path):
    folder = hub / "org" / "name"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# name")
    for number in range(2):
        (folder / "data" / f"train-{number:05d}.parquet").write_bytes(parquet(5, 10 * number))
    result = go("hf://org/name", tmp_path)
    assert result["samples"] == 10 and not (tmp_path / "cache").exists()
    build(folder, tmp_path / "local", workers=1, progress=False)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("0*.tar")} for name in ("out", "local")]
    assert files[0] == files[1] and len(files[0]) == 4
    again = open_source("hf://datasets/org/name/data/train-00001.parquet")
    assert [record.caption for part in again.parts() for record in again.read(part)] == [
        f"picture {10 + i}" for i in range(5)
    ]


def test_the_file_system_of_the_hub_reads_parquet_and_downloads_other_files(tmp_path):
    """In another process, because huggingface_hub reads HF_ENDPOINT when it is imported."""
    files = {"README.md": b"# name", "data/0.parquet": parquet(5), "data/1.parquet": parquet(4, 50)}
    files |= {"images/a.png": image(90), "images/a.txt": b"a cat"}
    script = """
import sys
from imagen.data.build.dataset import build
for number, url in enumerate(sys.argv[2:]):
    out = f"{sys.argv[1]}/{number}"
    print(build(url, out, workers=1, progress=False, cache=f"{sys.argv[1]}/cache")["samples"])
"""
    urls = ["hf://org/name", "hf://org/name@main/data", "hf://org/name/data/1.parquet", "hf://org/name/images"]
    with serve_hub(files) as (endpoint, answered):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", script, str(tmp_path), *urls]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["9", "9", "4", "1"], done.stderr
    assert sum(path.endswith("a.png") for path in answered) == 1
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_failing_connection_is_tried_again(hub, tmp_path, monkeypatch):
    (hub / "org" / "name").mkdir(parents=True)
    (hub / "org" / "name" / "0.parquet").write_bytes(parquet(4))
    failures, read = [], DirFileSystem.cat_file

    def unreliable(self, *args, **options):
        failures.append(1)
        if len(failures) % 2:
            raise ConnectionError("reset by peer")
        return read(self, *args, **options)

    monkeypatch.setattr(DirFileSystem, "cat_file", unreliable)
    assert go("hf://org/name", tmp_path)["samples"] == 4 and len(failures) > 1


def test_a_folder_of_images_is_downloaded_once(store, tmp_path):
    for i in range(4):
        store(f"photos/deep/{i}.png", image(i))
        store(f"photos/deep/{i}.txt", f"picture {i}".encode())
    store("photos/.hidden/x.png", image(9))
    assert go("memory://bucket/photos", tmp_path)["samples"] == 4
    dataset = open_split(tmp_path / "out")
    assert [dataset.key(i) for i in range(4)] == [f"deep/{i}" for i in range(4)]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(files) == 4
    store("photos/deep/4.png", image(4))
    store("photos/deep/4.txt", b"picture 4")
    source = open_source("memory://bucket/photos", cache=tmp_path / "cache")
    assert sum(1 for part in source.parts() for _ in source.read(part)) == 5
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_tars_and_a_zip_are_built_into_new_shards(store, tmp_path):
    with ShardWriter(tmp_path / "tars", 2) as writer:
        for i in range(3):
            writer.write({"__key__": f"k{i}", "png": image(i), "txt": b"x"})
    for tar in (tmp_path / "tars").glob("*.tar"):
        store(f"tars/{tar.name}", tar.read_bytes())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", image(0))
        archive.writestr("a.txt", "x")
    store("photos.zip", file.getvalue())
    assert go("memory://bucket/tars", tmp_path / "1")["samples"] == 3
    assert go("memory://bucket/photos.zip", tmp_path / "2")["samples"] == 1
    with pytest.raises(UserError, match="--out is missing"):
        build("memory://bucket/tars", workers=1, progress=False, cache=tmp_path / "cache")


def test_a_web_server_that_tells_no_sizes(tmp_path):
    pytest.importorskip("aiohttp")
    rows = "".join(f"{base64.b64encode(image(i)).decode()},picture {i}\n" for i in range(3))
    (tmp_path / "web" / "photos").mkdir(parents=True)
    (tmp_path / "web" / "p.csv").write_text(f"image_base64,caption\n{rows}")
    for i in range(2):
        (tmp_path / "web" / "photos" / f"{i}.png").write_bytes(image(10 + i))
        (tmp_path / "web" / "photos" / f"{i}.txt").write_text("x")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "web"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert go(f"{url}/p.csv", tmp_path / "1")["samples"] == 3
            assert go(f"{url}/photos/", tmp_path / "2")["samples"] == 2
        finally:
            server.shutdown()


@pytest.mark.parametrize("name", ["set.parquet", "set.csv"])
def test_a_table_of_a_store_names_no_files_of_this_machine(store, tmp_path, name):
    (tmp_path / "private.png").write_bytes(image(0))
    away = os.path.relpath(tmp_path / "private.png", tmp_path / "cache" / "any")
    rows = {"image": [str(tmp_path / "private.png"), away, "own.png"], "caption": ["a", "b", "c"]}
    if name.endswith(".csv"):
        lines = ["image,caption", *map(",".join, zip(*rows.values(), strict=True))]
        store(f"set/{name}", "\n".join(lines).encode())
        store("set/own.png", image(1))
    else:
        file = io.BytesIO()
        pq.write_table(pa.table(rows), file)
        store(f"set/{name}", file.getvalue())
    if name.endswith(".csv"):
        result = go("memory://bucket/set", tmp_path, max_rejected=1.0)
        assert (result["samples"], result["rejected"]) == (1, {"missing file": 2})
    else:
        with pytest.raises(UserError, match="3 of 3 records were rejected: missing file 3"):
            go("memory://bucket/set", tmp_path, max_rejected=1.0)


def test_urls_of_data_sets_are_completed():
    assert hub_url("hf://org/name") == "hf://datasets/org/name"
    assert hub_url("hf://org/name@main/data") == "hf://datasets/org/name@main/data"
    assert hub_url("hf://datasets/org/name") == "hf://datasets/org/name"
    assert hub_url("s3://bucket/name") == "s3://bucket/name"


def test_mistakes_are_one_line(hub, store, tmp_path):
    hub.mkdir(parents=True)
    store("a.txt", b"x")
    for url, words in [
        ("hf://org/nothing", "hf://datasets/org/nothing has no files; check the address"),
        ("s3x://bucket", "s3x"),
        ("memory://bucket", "has no known format"),
    ]:
        with pytest.raises(UserError, match=words):
            go(url, tmp_path)
    (hub / "org" / "broken").mkdir(parents=True)
    (hub / "org" / "broken" / "0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"broken/0\.parquet is not a complete Parquet file"):
        go("hf://org/broken", tmp_path)


def test_the_command(hub, tmp_path):
    (hub / "org" / "name").mkdir(parents=True)
    (hub / "org" / "name" / "0.parquet").write_bytes(parquet(4))
    code, out, _ = run_imagen("data", "build", "hf://org/name", "--out", tmp_path / "out", "--workers", 1, "--json")
    assert code == 0 and json.loads(out)["samples"] == 4
