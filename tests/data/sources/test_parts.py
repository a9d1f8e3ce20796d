"""How a source whose number of records is known divides into parts."""

import pytest

from imagen.data.sources import open_source
from imagen.data.sources.base import Options, divide


@pytest.mark.parametrize(
    "count, parts, most", [(0, 0, 0), (60, 1, 60), (250, 3, 84), (5000, 16, 313), (100_000, 100, 1000)]
)
def test_parts_give_sixteen_processes_work_and_hold_records_of_the_whole_source(count, parts, most):
    records = list(range(count))
    found = divide(records, Options(spread=True))
    assert (len(found), max(map(len, found), default=0)) == (parts, most)
    assert sorted(record for part in found for record in part) == records
    for part in found:
        assert list(part) == sorted(part) and part[0] < parts and part[-1] >= count - parts


def test_a_given_size_makes_contiguous_parts():
    assert divide("abcdefg", Options(records_per_part=3)) == ["abc", "def", "g"]


def test_images_of_each_folder_are_in_every_part(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        for i in range(100):
            (tmp_path / folder / f"{i:02d}.png").write_bytes(b"")
    parts = open_source(tmp_path).parts()
    assert [len(part["files"]) for part in parts] == [100, 100, 100]
    for part in parts:
        assert {name[0] for name in part["files"]} == set("abc")
    assert [part["files"] for part in open_source(tmp_path, records_per_part=100).parts()] == [
        [f"{folder}/{i:02d}.png" for i in range(100)] for folder in "abc"
    ]
