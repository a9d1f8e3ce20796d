"""Sample many images: ranks, interruptions, micro-batches, cached prompts, and images regenerated from metadata."""

import contextlib
import io
import shutil

import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, WordTokenEncoder, cascade, max_difference, noise_image, stage
from PIL import Image

from imagen.cascade import (
    Cascade,
    Stage,
    regenerate_request,
    write_regenerated,
    write_samples,
)
from imagen.cascade.upscaling import write_upscaled
from imagen.cli.sampling import written
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture


def file_contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ranks_and_interruptions_give_the_same_files(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")  # a saved cascade has hashes of its weights
    prompts = ["cat", "a dog on a mat", "", "cow", "bird", "fish", "a very long caption about a fox"]
    request = {"seed": [7, 7, 1, 2, 3, 4, 5], "n": 1, "batch_size": 2, "negative": "blur", **QUICK}
    write_samples(small_cascade, prompts, tmp_path / "one", **request)
    whole = file_contents(tmp_path / "one")
    for folder, first, last in ((tmp_path / "10", 1, 0), (tmp_path / "01", 0, 1)):
        paths = write_samples(small_cascade, prompts, folder, rank=first, ranks=2, **request)
        assert not (folder / "sheet.png").exists(), "the last rank writes the sheet"
        if first == 0:
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                written(paths, folder).show()
            assert shown.getvalue().startswith(f"4 of 7 images in {folder}; other processes write the rest")
        write_samples(small_cascade, prompts, folder, rank=last, ranks=2, **request)
        assert file_contents(folder) == whole and len(whole) == 8

    shutil.copytree(tmp_path / "one", tmp_path / "stopped")
    for number in (1, 4, 5, 6):  # one image of a batch, a whole batch, and the last, smaller batch
        (tmp_path / "stopped" / f"{number:04d}.png").unlink()
    write_samples(small_cascade, prompts, tmp_path / "stopped", rank=1, ranks=3, **request)
    write_samples(small_cascade, prompts, tmp_path / "stopped", **request)
    assert file_contents(tmp_path / "stopped") == whole

    alone = small_cascade.sample(["cow"], seeds=2, negative="blur", **QUICK)[0]
    assert max_difference(alone, read_picture(tmp_path / "one" / "0003.png")) <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_is_regenerated_bit_exactly(small_cascade, tmp_path, precision):
    small_cascade.save(tmp_path / "cascade")
    # Batches of four and two images; the first one has micro-batches of three and one, then of two and two.
    request = {**QUICK, "precision": precision, "batch_size": 4, "micro_batch": [3, 2], "sampler": ["ddpm", "heun"]}
    request |= {"size": (32, 48), "steps": 2, "guidance": [2.0, 1.0]}
    prompts = ["cat", "dog on a mat", "cow"]
    paths = write_samples(small_cascade, prompts, tmp_path / "o", n=2, vary=0.3, negative="blur", **request)
    loaded = Cascade.load(tmp_path / "cascade")
    loaded.texts.encoder = WordTokenEncoder()
    for number in (0, 3, 5):
        regenerated, index = regenerate_request(loaded, paths[number], device="cpu")
        again = write_regenerated(loaded, regenerated, index, tmp_path / f"again{number}", progress=False)
        assert again.read_bytes() == paths[number].read_bytes()
    regenerated, index = regenerate_request(loaded, paths[0], device="cpu")
    sheet = (tmp_path / "o" / "sheet.png").read_bytes()
    write_regenerated(loaded, regenerated, index, tmp_path / "o", progress=False)  # the file itself
    assert (tmp_path / "o" / "sheet.png").read_bytes() == sheet


def test_an_edited_image_is_regenerated_from_the_same_inputs(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")
    init, mask = noise_image(32, 32), Image.new("L", (32, 32), 128)
    (path,) = write_samples(small_cascade, ["cat"], tmp_path / "o", init=init, mask=mask, strength=0.7, **QUICK)
    regenerated, index = regenerate_request(small_cascade, path, init=init, mask=mask, device="cpu")
    assert (
        write_regenerated(small_cascade, regenerated, index, tmp_path / "a", progress=False).read_bytes()
        == path.read_bytes()
    )
    for given, message in (
        ({}, "give its init image"),
        ({"init": init}, "give its mask"),
        ({"init": noise_image(32, 32, 1), "mask": mask}, "is not its init image"),
        ({"init": init, "mask": mask, "start": init}, "made without an image to upsample"),
    ):
        with pytest.raises(UserError, match=message):
            regenerate_request(small_cascade, path, **given)


def test_an_init_image_is_not_ignored(small_cascade):
    init = noise_image(32, 32)
    assert small_cascade.request(["cat"], init=init).strength == (0.7, 0.7)
    assert small_cascade.request(["cat"], init=init, mask=Image.new("L", (32, 32))).strength == (1.0, 1.0)
    assert small_cascade.request(["cat"]).strength == (1.0, 1.0)


def test_an_upsampled_image_is_regenerated(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")
    noise_image(37, 21).save(tmp_path / "photo.png")
    (path,) = write_upscaled(small_cascade, [tmp_path / "photo.png"], tmp_path / "o", tile=35, seed=4, **QUICK)
    assert read_metadata(path)["tiles"] == [32]
    regenerated, index = regenerate_request(
        small_cascade, path, start=read_picture(tmp_path / "photo.png"), device="cpu"
    )
    assert (
        write_regenerated(small_cascade, regenerated, index, tmp_path / "a", progress=False).read_bytes()
        == path.read_bytes()
    )


def test_images_that_cannot_be_regenerated_are_rejected(small_cascade, tmp_path):
    small_cascade.save(tmp_path / "cascade")
    (path,) = write_samples(small_cascade, ["cat"], tmp_path / "o", stages=1, **QUICK)
    other = cascade(stage(16, seed=9), stage(32, 16))
    other.save(tmp_path / "other")
    with pytest.raises(UserError, match="made by other weights than those of this cascade: 16 "):
        regenerate_request(other, path)
    noise_image(8, 8).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="has no imagen metadata"):
        regenerate_request(small_cascade, tmp_path / "plain.png")


def test_micro_batches_do_not_change_images(small_cascade):
    prompts = ["cat", "dog", "cow"]
    calls = []
    seen = lambda preview: calls.append((preview.stage, len(preview.pictures)))  # noqa: E731
    small = small_cascade.sample(prompts, micro_batch=[2, 1], steps=1, on_step=seen, **QUICK)
    assert calls == [(0, 2), (0, 1), (1, 1), (1, 1), (1, 1)]
    assert (
        max(max_difference(a, b) for a, b in zip(small, small_cascade.sample(prompts, steps=1, **QUICK), strict=True))
        <= 1
    )


def test_prompts_are_encoded_once_across_calls():
    words = WordTokenEncoder()
    model = Cascade([stage(16)], text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=words)
    model.sample(["cat", "dog", "cat"], negative="blur", batch_size=1, steps=1, **QUICK)
    model.sample(["dog", "cow"], steps=1, **QUICK)
    assert words.seen == ["cat", "dog", "blur", "cow"]


def test_a_rank_encodes_the_prompts_of_its_own_batches():
    words = WordTokenEncoder()
    model = Cascade([stage(16)], text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=words)
    request = model.request(["cat", "dog", "cow", "fish", "bird"], batch_size=1, steps=1, device="cpu")
    images = model.run(request, request.batches()[1::2], progress=False)
    next(images)
    assert words.seen == ["dog", "fish"], "encodes those of later batches ahead"
    assert len(list(images)) == 1 and words.seen == ["dog", "fish"]


def test_compiled_networks_give_the_same_images():
    model = cascade(stage(16))
    plain = model.sample(["cat"], steps=2, **QUICK)[0]
    model.compile(backend="eager")
    assert max_difference(plain, model.sample(["cat"], steps=2, **QUICK)[0]) <= 1
    assert not any("_orig_mod" in key for key in model.stages[0].unet.state_dict())


def test_a_stage_samples_without_a_text_length(small_cascade):
    """Call `Stage.sample` as training does."""
    small: Stage = small_cascade.stages[0]
    text = torch.randn(3, WIDTH)
    picture = small.sample(
        [0], size=(16, 16), settings=small.config.sampling, texts=[text], unconditional=torch.zeros(1, WIDTH)
    )
    assert picture.shape == (1, 3, 16, 16)
