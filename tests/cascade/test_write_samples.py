"""Write samples to a folder: files are numbered, jobs resume, and foreign files are rejected."""

import pytest
from cascades import QUICK, max_difference
from PIL import Image

from imagen.cascade import read_provenance, write_samples, write_upscaled
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture, write_png


def test_write_samples_numbers_files_resumes_and_rejects_other_jobs(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")
    out, request = tmp_path / "out", {"seed": 3, "n": 2, "batch_size": 3, "device": "cpu", "precision": "fp32"}
    paths = write_samples(small_cascade, ["a cat", "dog"], out, progress=False, **request)
    assert [path.name for path in paths] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = [read_metadata(path) for path in paths]
    assert [(m["prompt"], m["seed"]) for m in found] == [("a cat", 3), ("a cat", 4), ("dog", 3), ("dog", 4)]
    assert found[0]["stages"][1]["weights"] == small_cascade.stages[1].sha256
    assert found[0]["stages"][0]["sampling"]["guidance"] == 2.0
    assert max_difference(read_picture(paths[3]), small_cascade.sample(["dog"], seeds=4, **QUICK)[0]) <= 1
    assert (out / "sheet.png").exists()

    before = {path.name: path.stat().st_mtime_ns for path in paths}
    content = paths[1].read_bytes()
    paths[1].unlink()
    write_samples(small_cascade, ["a cat", "dog"], out, progress=False, **request)
    after = {path.name: path.stat().st_mtime_ns for path in paths}
    assert [name for name in before if before[name] != after[name]] == ["0001.png"]
    assert max_difference(read_picture(paths[1]), small_cascade.sample(["a cat"], seeds=4, **QUICK)[0]) <= 1
    assert read_metadata(paths[1]) is not None and len(content) > 0

    for prompts, change, message in [
        (["a cow", "dog"], {}, r"0000\.png already exists, made with another prompt \('a cat', not 'a cow'\)"),
        (["a cat", "dog"], {"seed": 4}, "another seed"),
        (["a cat", "dog"], {"steps": 5}, r"another setting steps of stage 16 \(3, not 5\)"),
    ]:
        with pytest.raises(UserError, match=message):
            write_samples(small_cascade, prompts, out, progress=False, **{**request, **change})
    metadata = read_metadata(paths[0])
    for damaged in (None, 5, "x", {}, [16], [{}, {}], [{"resolution": 16, "sampling": []}] * 2):
        write_png(paths[0], Image.new("RGB", (8, 8)), {**metadata, "stages": damaged})
        with pytest.raises(UserError, match="made with other stages"):
            write_samples(small_cascade, ["a cat", "dog"], out, progress=False, **request)
    Image.new("RGB", (8, 8)).save(paths[0])
    with pytest.raises(UserError, match="has no imagen metadata"):
        write_samples(small_cascade, ["a cat", "dog"], out, progress=False, **request)


def test_write_samples_upsamples_input_images(small_cascade, tmp_path):
    start = [Image.new("RGB", (24, 16), "red")]
    (path,) = write_samples(small_cascade, [""], tmp_path, start=start, progress=False, device="cpu", precision="fp32")
    metadata = read_metadata(path)
    assert read_picture(path).size == (48, 32) and len(metadata["stages"]) == 1 and len(metadata["start"]) == 64
    with pytest.raises(UserError, match="another start"):
        write_samples(small_cascade, [""], tmp_path, start=[Image.new("RGB", (24, 16))], device="cpu", precision="fp32")


def test_write_samples_rejects_a_path_that_is_not_a_folder(small_cascade, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder"):
        write_samples(small_cascade, ["x"], tmp_path / "file", device="cpu")


def test_a_sheet_of_the_users_own_is_not_overwritten(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")
    out, sheet = tmp_path / "out", tmp_path / "out" / "sheet.png"
    own = Image.new("RGB", (8, 8), "red")
    write_png(sheet, own)
    write_png(tmp_path / "photo.png", own)
    for write, given in ((write_samples, ["cat"]), (write_upscaled, [tmp_path / "photo.png"])):
        with pytest.raises(UserError, match=r"sheet\.png already exists and is not a contact sheet of imagen; move it"):
            write(small_cascade, given, out, **QUICK)
        assert [path.name for path in out.iterdir()] == ["sheet.png"] and read_picture(sheet).size == (8, 8)
    sheet.unlink()
    (image,) = write_samples(small_cascade, ["cat"], out, **QUICK)
    with pytest.raises(UserError, match=r"sheet\.png is a contact sheet; give one of its images"):
        read_provenance(sheet)
    write_png(sheet, own)  # has no mark, as those of early versions, but is beside an image
    write_samples(small_cascade, ["cat"], out, **QUICK)
    image.unlink()
    write_samples(small_cascade, ["dog"], out, **QUICK)  # a marked sheet without its images
    assert read_metadata(sheet) == {"contact_sheet": True}
