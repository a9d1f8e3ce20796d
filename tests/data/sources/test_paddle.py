"""Test the line formats of the Paddle implementation: CC12M with embeddings, and LAION-400M."""

import base64
import gzip
import os
import pickle
import shutil

import numpy as np
import pytest
from reading import encoded_images, problems, read_records

from imagen.data.sources import lines, open_source
from imagen.errors import UserError

PICTURES = encoded_images(8)


def code(data):
    return base64.b64encode(data).decode()


@pytest.fixture
def cc12m(tmp_path):
    """Write two text files of four lines, with embeddings padded to 6 tokens; return the folder and unpadded tokens."""
    rng = np.random.default_rng(0)
    tokens = []
    for name in ("part-0", "part-1"):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "data.txt", "w") as file:
            for i in range(4):
                length, batch = 1 + (len(tokens) * 5) % 6, (1,) * (i % 2)
                embedding = np.zeros((*batch, 6, 8), np.float16 if i == 3 else np.float32)
                mask = np.zeros((*batch, 6), [np.int64, np.int32, np.bool_, np.float32][i])
                embedding[..., :length, :] = rng.standard_normal((length, 8))
                mask[..., :length] = 1
                tokens.append(embedding[..., :length, :].reshape(length, 8))
                np.save(tmp_path / name / f"{i}_text.npy", embedding)
                np.save(tmp_path / name / f"{i}_mask.npy", mask)
                file.write(f"id{i}\t{i}_text.npy\t{i}_mask.npy\t{code(PICTURES[len(tokens) - 1])}\n")
    (tmp_path / "list.txt").write_text("part-0/data.txt\n\npart-1/data.txt\n")
    return tmp_path, tokens


def test_cc12m_from_a_list_has_the_unpadded_tokens(cc12m):
    folder, tokens = cc12m
    for format in (None, "cc12m_base64"):
        records = read_records(folder / "list.txt", format)
        assert [r.image for r in records] == PICTURES and all(r.caption is None for r in records)
        for record, expected in zip(records, tokens, strict=True):
            assert record.embedding.dtype == expected.dtype
            np.testing.assert_array_equal(record.embedding, expected)
    assert [r.key for r in records][3:5] == ["00000-000000004", "00001-000000001"]
    assert records[4].origin == "part-1/data.txt, line 1"


def test_cc12m_can_be_a_text_file_or_a_folder(cc12m):
    folder, tokens = cc12m
    by_file, by_folder = (read_records(folder / "part-1" / name) for name in ("data.txt", ""))
    assert [r.image for r in by_file] == [r.image for r in by_folder] == PICTURES[4:]
    assert [len(r.embedding) for r in by_file] == [len(t) for t in tokens[4:]]


def test_a_mask_may_have_holes(cc12m):
    folder, _ = cc12m
    embedding = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(folder / "part-0" / "0_text.npy", embedding)
    np.save(folder / "part-0" / "0_mask.npy", np.array([1, 0, 1, 0, 0, 1]))
    record = read_records(folder / "part-0")[0]
    np.testing.assert_array_equal(record.embedding, embedding[[0, 2, 5]])


class Unpickled:
    def __reduce__(self):
        return os._exit, (1,)  # unpickling would end the test


def test_faulty_lines_of_cc12m_have_reasons(tmp_path):
    good, mask, big = np.ones((4, 8), np.float32), np.ones(4, np.int64), b"\x93NUMPY\x01\x00v\x00"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024), }"
    arrays = {
        "good": good,
        "mask": mask,
        "vector": np.ones(8, np.float32),
        "batch": np.ones((2, 4, 8), np.float32),
        "whole": np.ones((4, 8), np.int64),
        "bfloat16": np.ones((4, 8), "V2"),
        "mask5": np.ones(5, np.int64),
        "mask44": np.ones((4, 4), np.int64),
        "zeros": np.zeros(4, np.int64),
        "names": np.array(["a"] * 4),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "archive", good)
    shutil.move(tmp_path / "archive.npz", tmp_path / "archive.npy")
    np.save(tmp_path / "object.npy", np.array([Unpickled()], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Unpickled()))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    (tmp_path / "huge.npy").write_bytes(big + header.ljust(117) + b"\n" + bytes(8))
    (tmp_path / "empty.npy").write_bytes(b"")
    picture = code(PICTURES[0])
    lines = [
        ("good", "mask", picture, None),
        ("none", "mask", picture, "missing file"),
        ("good", "no", "", "missing file"),
    ]
    bad = ["vector", "batch", "whole", "bfloat16", "archive", "object", "pickle", "cut", "huge", "empty"]
    lines += [(name, "mask", picture, "bad embedding") for name in bad]
    lines += [("good", name, picture, "bad embedding") for name in ("mask5", "mask44", "zeros", "names", "pickle")]
    lines += [("good", "mask", data, "bad base64") for data in ("", "abc", "not base64!")]
    with open(tmp_path / "data.txt", "wb") as file:
        for i, (embedding, mask_name, data, _) in enumerate(lines):
            file.write(f"{i}\t{embedding}.npy\t{mask_name}.npy\t{data}\r\n".encode())
        file.write(b"too\tfew\tcolumns\n\n1\t\xff.npy\tmask.npy\tAAAA\n1\t\tmask.npy\tAAAA\n")
    records = read_records(tmp_path / "data.txt", "cc12m_base64")
    expected = [reason for *_, reason in lines] + ["broken row"] * 3
    assert [r.problem and r.problem[0] for r in records] == expected
    assert records[0].image == PICTURES[0]


def laion_line(i, caption=None, data=None):
    return b"\t".join(
        [b"%d" % i, b"url", caption or f"caption {i} ü".encode(), b"x", data or base64.b64encode(PICTURES[i]), b"y"]
    )


def test_laion_may_be_compressed(tmp_path):
    lines = [laion_line(i) for i in range(8)]
    (tmp_path / "part-0").write_bytes(b"\n".join(lines[:3]))
    (tmp_path / "part-1.gz").write_bytes(gzip.compress(b"\n".join(lines[3:6]) + b"\n"))
    (tmp_path / "part-2.txt").write_bytes(b"\r\n".join(lines[6:]))
    expected = [(f"caption {i} ü".encode(), PICTURES[i]) for i in range(8)]
    sources = {"folder": tmp_path, "list": tmp_path / "list"}
    by_folder = read_records(tmp_path, None, part_sizes=(3, 1000))
    (tmp_path / "list").write_text("part-0\npart-1.gz\npart-2.txt")
    (tmp_path / ".hidden").write_bytes(lines[0])
    for path in sources.values():  # the list is not counted as a text file of the folder
        records = read_records(path, "laion_400m", part_sizes=(3, 1000))
        assert [(r.caption, r.image) for r in records] == expected
        assert [r.key for r in records] == [r.key for r in by_folder]
    assert records[4].origin == "part-1.gz, line 2" and records[4].key == "00001-000000002"
    assert (
        len(read_records(tmp_path / "part-0")) == 3 and len(read_records(tmp_path / "part-1.gz", part_sizes=(3,))) == 3
    )


def test_faulty_lines_of_laion_have_reasons(tmp_path):
    lines = [
        laion_line(0),
        b"no tab at all",
        laion_line(1) + b"\tmore",
        laion_line(2, data=b"A"),
        laion_line(3, b"\xff"),
    ]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    records = read_records(tmp_path / "a.txt")
    assert [r.problem and r.problem[0] for r in records] == [None, "broken row", "broken row", "bad base64", None]
    assert records[3].caption == "caption 2 ü".encode() and records[4].caption == b"\xff"


def test_a_damaged_gzip_file_gives_the_lines_before_the_damage(tmp_path):
    noise = np.random.default_rng(0)
    lines = [laion_line(0, data=base64.b64encode(noise.bytes(3000))) for _ in range(100)]
    data = gzip.compress(b"\n".join(lines))
    path = tmp_path / "a.gz"
    for broken in (data[: len(data) // 2], data[:-4], data[:200_000] + bytes(1000) + data[201_000:], data + b"junk"):
        path.write_bytes(broken)
        records = read_records(path, "laion_400m", part_sizes=(1000,))
        assert list(problems(records).values())[-1] == "unreadable file" and len(records) > 40
        assert problems(records).keys() == {f"a.gz, line {len(records)} and all after it"}
    path.write_bytes(b"no gzip at all")
    assert problems(read_records(path, "laion_400m", part_sizes=(1000,))) == {
        "a.gz, line 1 and all after it": "unreadable file"
    }


def test_a_compressed_line_may_not_fill_memory(tmp_path, monkeypatch):
    good, long = laion_line(0), laion_line(1)
    monkeypatch.setattr(lines, "MAX_LINE", len(good) + 1)  # with its newline
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(good + b"\n" + good + b"\n" + long + bytes(10_000_000)))
    records = read_records(path, "laion_400m", part_sizes=(1000,))
    assert [r.image for r in records] == [PICTURES[0], PICTURES[0], None]
    assert problems(records) == {"a.gz, line 3 and all after it": "unreadable file"}


def test_unusable_lists_and_folders_are_a_one_line_error(tmp_path):
    (tmp_path / "list").write_text("a.txt\nb.txt\n")
    (tmp_path / "a.txt").write_bytes(laion_line(0))
    with pytest.raises(UserError, match=r"list names b\.txt, which does not exist"):
        open_source(tmp_path / "list", "laion_400m").parts()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "e.txt").write_bytes(b"")
    for path in (tmp_path / "empty", tmp_path / "empty" / "e.txt"):
        with pytest.raises(UserError, match="contains no lines"):
            open_source(path, "cc12m_base64").parts()
    source = open_source(tmp_path / "a.txt", "laion_400m")
    (part,) = source.parts()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt does not exist"):
        list(source.read(part))


def test_a_text_file_of_broken_lines_is_not_a_list(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5000 + b"\n")
    (tmp_path / "b").write_bytes(laion_line(0))
    assert list(problems(read_records(tmp_path, "laion_400m"))) == ["a, line 1"]
    with pytest.raises(UserError, match=r"names xxx.*, which does not exist"):
        open_source(tmp_path / "a", "laion_400m").parts()
