"""Compare whole cascades with diffusers' pipelines for the same prompts, noise, scheduler and steps."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_imagen
from PIL import Image

from imagen.cascade import Cascade, assemble
from imagen.cascade.storage import read_manifest, read_tensors, write_cascade
from imagen.convert.deepfloyd import convert_deepfloyd
from imagen.convert.diffusers import convert_diffusers
from imagen.errors import UserError
from imagen.stage.inputs import to_images, to_uint8

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("tokenizers")

from pipeline_images import difference, diffusers_images, our_images  # noqa: E402
from pipelines import save_pipeline  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    return [save_pipeline(folder / f"IF-{stage}", stage) for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def converted(pipelines: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "cascade"
    convert_deepfloyd(pipelines[:2], out)
    return out


def test_images_equal_those_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], converted: Path
) -> None:
    """The difference is mostly due to alphas, which diffusers computes in float32, but IF and we in float64."""
    small = diffusers_images(monkeypatch, pipelines[0], None, 5)
    handed_on = to_images(to_uint8(small))
    large = diffusers_images(monkeypatch, pipelines[1], handed_on, 5)
    assert small.std() > 0.3 and large.std() > 0.3 and difference(small[0], small[1]) > 0.3
    cascade = Cascade.load(converted)
    made = our_images(monkeypatch, cascade, 5)
    assert difference(made[0], small) < 1e-3
    assert difference(our_images(monkeypatch, cascade, 5, start=handed_on)[0], large) < 1e-3
    # The first stages differ by rounding, so some pixels between the stages may differ by one level. The second stages
    # are therefore compared on the output of our first stage.
    levels = (to_uint8(made[0]).int() - to_uint8(small).int()).abs()
    assert levels.max() <= 1 and (levels > 0).float().mean() < 0.02
    assert difference(made[1], diffusers_images(monkeypatch, pipelines[1], to_images(to_uint8(made[0])), 5)) < 1e-3


def test_the_third_stage_alone_equals_that_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], tmp_path: Path
) -> None:
    (stage,) = convert_deepfloyd(pipelines[2:], tmp_path / "third")
    assert (stage.low_resolution, stage.resolution) == (16, 64)
    torch.manual_seed(0)
    start = to_images(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8))
    (made,) = our_images(monkeypatch, Cascade.load(tmp_path / "third"), 5, start=start)
    assert difference(made, diffusers_images(monkeypatch, pipelines[2], start, 5)) < 1e-3


@pytest.mark.parametrize(
    "scheduler",
    [
        {"timestep_spacing": "linspace"},
        {"thresholding": False},
        {"thresholding": False, "clip_sample": False, "prediction_type": "v_prediction"},
        {"variance_type": "fixed_small"},
        {"variance_type": "fixed_large"},
    ],
    ids=["linspace", "clipped", "unclipped-v", "small", "large"],
)
def test_supported_schedulers_give_the_images_of_diffusers(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], tmp_path: Path, scheduler: dict[str, Any]
) -> None:
    pipeline = Path(shutil.copytree(pipelines[0], tmp_path / "IF-1"))
    changed = diffusers.DDPMScheduler.from_pretrained(pipeline / "scheduler", **scheduler)
    changed.save_pretrained(pipeline / "scheduler")
    convert_deepfloyd([pipeline], tmp_path / "cascade")
    (made,) = our_images(monkeypatch, Cascade.load(tmp_path / "cascade"), 5)
    assert difference(made, diffusers_images(monkeypatch, pipeline, None, 5)) < 1e-3


@pytest.mark.parametrize(("variance", "gamma"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_a_pipeline_fine_tuned_by_diffusers_has_a_fixed_variance(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], tmp_path: Path, variance: str, gamma: float
) -> None:
    """Fine-tuning scripts of diffusers set a fixed variance, so the learned variance of the U-Net is unused."""
    pipeline = Path(shutil.copytree(pipelines[1], tmp_path / "IF-2"))
    file = pipeline / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": variance}))
    (stage,) = convert_deepfloyd([pipeline], tmp_path / "cascade")
    assert stage.unet.learned_variance and stage.objective.variance_weight == 0
    assert (stage.sampling.variance, stage.sampling.gamma) == ("fixed", gamma)

    torch.manual_seed(0)
    start = to_images(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
    wanted = diffusers_images(monkeypatch, pipeline, start, 5)
    (made,) = our_images(monkeypatch, Cascade.load(tmp_path / "cascade"), 5, start=start)
    assert difference(made, wanted) < 1e-3
    assert difference(diffusers_images(monkeypatch, pipelines[1], start, 5), wanted) > 0.1  # with the learned variance

    (exported,) = convert_diffusers(tmp_path / "cascade", tmp_path / "out")
    assert json.loads((exported / "scheduler" / "scheduler_config.json").read_text())["variance_type"] == variance
    original = diffusers.IFSuperResolutionPipeline.from_pretrained(pipeline)
    text = {"tokenizer": original.tokenizer, "text_encoder": original.text_encoder}
    assert torch.equal(diffusers_images(monkeypatch, exported, start, 5, **text), wanted)
    assert convert_deepfloyd([exported], tmp_path / "again", encoder=str(pipeline)) == [stage]


def test_settings_are_the_recommended_ones_and_those_in_files(converted: Path, pipelines: list[Path]) -> None:
    manifest = read_manifest(converted)
    base, large = (stage.config for stage in manifest.stages)
    assert (base.resolution, large.low_resolution, large.resolution) == (16, 16, 32)
    assert (base.sampling.steps, base.sampling.guidance, base.sampling.max_scale) == (100, 7.0, 1.5)
    assert (large.sampling.steps, large.sampling.guidance, large.sampling.max_scale) == (50, 4.0, 1.0)
    assert (large.sampling.low_res_noise, large.low_res_filter, base.sampling.percentile) == (0.25, "bilinear", 0.95)
    assert manifest.text is not None and manifest.text.config.encoder == str(pipelines[0])
    assert (manifest.text.config.max_tokens, manifest.text.config.padding) == (77, "full")


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return convert_diffusers(converted, tmp_path_factory.mktemp("exported"))


class TestRoundTrip:
    def test_is_bit_exact(self, converted: Path, exported: list[Path], pipelines: list[Path], tmp_path: Path) -> None:
        convert_deepfloyd(exported, tmp_path / "again", encoder=str(pipelines[0]))
        first, again = read_manifest(converted), read_manifest(tmp_path / "again")
        assert first.text == again.text
        for before, after in zip(first.stages, again.stages, strict=True):
            assert (before.config, before.sha256) == (after.config, after.sha256)

    def test_diffusers_gives_the_same_images(
        self, monkeypatch: pytest.MonkeyPatch, converted: Path, exported: list[Path], pipelines: list[Path]
    ) -> None:
        original = diffusers.IFPipeline.from_pretrained(pipelines[0])
        text = {"tokenizer": original.tokenizer, "text_encoder": original.text_encoder}
        small = diffusers_images(monkeypatch, exported[0], None, 5, **text)
        assert torch.equal(small, diffusers_images(monkeypatch, pipelines[0], None, 5))
        large = diffusers_images(monkeypatch, exported[1], to_images(to_uint8(small)), 5, **text)
        (made,) = our_images(monkeypatch, Cascade.load(converted), 5, start=to_images(to_uint8(small)))
        assert difference(made, large) < 1e-3

    def test_the_card_shows_how_to_load_it(self, exported: list[Path]) -> None:
        card = (exported[1] / "README.md").read_text()
        assert "IFSuperResolutionPipeline.from_pretrained(" in card and "noise_level=250" in card
        assert 'encoder = "IF-1"' in card and 'subfolder="tokenizer"' in card  # only the name of a local folder
        index = json.loads((exported[1] / "model_index.json").read_text())
        assert index["requires_safety_checker"] is True  # the weights come from elsewhere, not from our training

    def test_never_overwrites_other_files(self, converted: Path, exported: list[Path]) -> None:
        with pytest.raises(UserError, match="stage-16 is not empty"):
            convert_diffusers(converted, exported[0].parent)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: replace(s, unet=replace(s.unet, resample="conv")), "resample is 'conv'"),
        (lambda s: replace(s, unet=replace(s.unet, context_norm="layer")), "context_norm is 'layer'"),
        (lambda s: replace(s, schedule=replace(s.schedule, kind="cosine")), "a cosine schedule"),
        (lambda s: replace(s, sampling=replace(s.sampling, max_scale=None)), "set max_scale"),
        (lambda s: replace(s, sampling=replace(s.sampling, variance="fixed")), "gamma 0.3, not 0 or 1"),
    ],
)
def test_stages_that_diffusers_cannot_express_are_rejected(
    converted: Path, tmp_path: Path, change: Callable, reason: str
) -> None:
    manifest = read_manifest(converted)
    assert manifest.text is not None
    write_cascade(
        tmp_path / "other",
        text=manifest.text.config,
        unconditional=torch.zeros(77, 24),
        stages=[(change(manifest.stages[0].config), {"some": torch.zeros(1)}, {})],
    )
    with pytest.raises(UserError, match=f"stage 16: diffusers cannot express it: .*{reason}"):
        convert_diffusers(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"padding": "trim"}, "padding"), ({"max_tokens": 128}, "128"), ({"unconditional": "zeros"}, "zeros"),
     ({"cleaning": "none"}, "lower case")],
)  # fmt: skip
def test_text_settings_that_diffusers_cannot_express_are_rejected(
    converted: Path, tmp_path: Path, change: dict, reason: str
) -> None:
    manifest = read_manifest(converted)
    assert manifest.text is not None
    write_cascade(
        tmp_path / "other",
        text=replace(manifest.text.config, **change),
        unconditional=torch.zeros(77, 24),
        stages=[(manifest.stages[0].config, {"some": torch.zeros(1)}, {})],
    )
    with pytest.raises(UserError, match=f"diffusers cannot express it: .*{reason}"):
        convert_diffusers(tmp_path / "other", tmp_path / "out")


def test_the_command_converts_both_ways(pipelines: list[Path], tmp_path: Path) -> None:
    done = run_imagen(
        "convert", "deepfloyd", pipelines[0], pipelines[1], "--out", tmp_path / "cascade", "--device", "cpu"
    )
    assert (done.code, done.err) == (0, "") and "stage 16 and 32" in done.out, done
    done = run_imagen("sample", tmp_path / "cascade", "a red apple", "--steps", 2, "--out", tmp_path / "pictures")
    assert done.code == 0, done
    assert Image.open(tmp_path / "pictures" / "0000.png").size == (32, 32)
    done = run_imagen("convert", "diffusers", tmp_path / "cascade", "--out", tmp_path / "out")
    assert done.code == 0 and done.out.count("its README.md shows how to load it") == 2, done
    done = run_imagen("convert", "deepfloyd", tmp_path, "--out", tmp_path / "x")
    assert done.code == 2 and done.err.count("\n") == 1 and "contains neither unet/config.json" in done.err


class TestMistakes:
    @pytest.fixture
    def broken(self, pipelines: list[Path], tmp_path: Path) -> Path:
        return Path(shutil.copytree(pipelines[0], tmp_path / "broken"))

    def assert_rejected(self, paths: Any, tmp_path: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            convert_deepfloyd(paths if isinstance(paths, list) else [paths], tmp_path / "out")
        assert all(word in str(caught.value) for word in words), caught.value
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    def test_pickles_are_rejected(self, broken: Path, tmp_path: Path) -> None:
        (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(broken / "unet" / "pytorch_model.bin")
        self.assert_rejected(broken, tmp_path, "pickled", ".safetensors")

    @pytest.mark.parametrize("weight_map", [["a"], {"a": "../unet/a.safetensors"}, {"a": "a.bin"}, {"a": {}}, {}, None])
    def test_an_index_that_points_outside_the_folder_is_rejected(
        self, broken: Path, tmp_path: Path, weight_map: Any
    ) -> None:
        (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        index = broken / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        self.assert_rejected(broken, tmp_path, str(index), "weight_map ")

    def test_a_truncated_file_is_rejected(self, broken: Path, tmp_path: Path) -> None:
        file = broken / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.assert_rejected(broken, tmp_path, str(file), "cannot be read as safetensors")

    def test_a_config_that_does_not_match_the_weights_is_rejected(self, broken: Path, tmp_path: Path) -> None:
        file = broken / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layers_per_block": 3}))
        self.assert_rejected(
            broken, tmp_path, str(broken / "unet"), "is missing; the file does not fit its config.json"
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"beta_schedule": "linear"},
            {"num_train_timesteps": 500},
            {"variance_type": "learned"},
            {"variance_type": ["fixed_small"]},
            {"prediction_type": {}},
            {"sample_max_value": "1"},
            {"dynamic_thresholding_ratio": None},
            {"steps_offset": 1},
            {"timestep_spacing": "random"},
            {"prediction_type": "flow"},
        ],
    )
    def test_unsupported_schedulers_are_rejected(self, broken: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        file = broken / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        self.assert_rejected(broken, tmp_path, str(file), f"{next(iter(change))} is {next(iter(change.values()))!r}")

    def test_paths_that_are_not_pipelines(self, pipelines: list[Path], tmp_path: Path) -> None:
        self.assert_rejected([], tmp_path, "nothing to convert")
        self.assert_rejected(tmp_path / "nowhere", tmp_path, "is not a folder")
        self.assert_rejected(pipelines[0] / "unet", tmp_path, "contains neither unet/config.json nor config.yml")

    def test_stages_in_the_wrong_order_are_rejected(self, pipelines: list[Path], tmp_path: Path) -> None:
        self.assert_rejected([pipelines[1], pipelines[0]], tmp_path, "only the first stage can be")


def test_sharded_and_low_precision_weights_are_converted(pipelines: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(pipelines[0], tmp_path / "sharded"))
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(whole).items()}
    whole.unlink()
    names, parts = sorted(tensors), {}
    for number, part in enumerate((names[:40], names[40:]), 1):
        file = f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
        parts |= dict.fromkeys(part, file)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": parts}))
    (folder / "LICENSE").write_text("terms")
    convert_deepfloyd([folder], tmp_path / "cascade")
    (record,) = read_manifest(tmp_path / "cascade").stages
    read = read_tensors(tmp_path / "cascade", record.weights, record.sha256)
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert torch.equal(read["conv_in.weight"], tensors["conv_in.weight"].float())
    assemble([tmp_path / "cascade"], tmp_path / "joined")
    (exported,) = convert_diffusers(tmp_path / "joined", tmp_path / "exported")
    assert (exported / "LICENSE").read_text() == "terms"  # every copy includes the license
