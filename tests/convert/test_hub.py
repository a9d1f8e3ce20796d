"""Test pushing to and loading from the hub, with its two network functions replaced by a local folder."""

import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

import huggingface_hub
import pytest
import torch
from command_line import run_imagen
from safetensors.torch import save_file

import imagen
from imagen.cascade import SamplingConfig, Stage, StageConfig
from imagen.cascade.cascade import Cascade
from imagen.cascade.hub import MARK, is_name, push
from imagen.errors import UserError
from imagen.models.config import Level, UNetConfig
from imagen.models.unet import UNet


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace huggingface.co by a folder, and return the folder."""
    remote = tmp_path / "hub"

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        if not (remote / name).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("401 Client Error.\nRepository not found")
        local = tmp_path / "cache" / name
        local.mkdir(parents=True)
        for path in (remote / name).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, local)
        return str(local)

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            assert private and exist_ok
            (remote / name).mkdir(parents=True, exist_ok=True)

        def upload_folder(
            self, *, repo_id: str, folder_path: str, ignore_patterns: list[str], delete_patterns: list[str]
        ) -> None:
            for path in list((remote / repo_id).iterdir()):
                if any(path.match(pattern) for pattern in delete_patterns):
                    path.unlink()
            shutil.copytree(folder_path, remote / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return remote


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    unet = UNetConfig(levels=(Level(channels=8, blocks=1, stride=1),), middle=False)
    stage = Stage(StageConfig(resolution=8, unet=unet, sampling=SamplingConfig(steps=2)), UNet(unet), {"step": 7})
    Cascade([stage]).save(tmp_path / "cascade")
    return tmp_path / "cascade"


def test_a_pushed_cascade_can_be_loaded(hub: Path, saved: Path) -> None:
    done = run_imagen("assemble", saved, "--out", saved.with_name("joined"), "--push", "some-lab/apples-64")
    assert done.code == 0 and done.out.endswith("https://huggingface.co/some-lab/apples-64\n"), done
    remote = hub / "some-lab" / "apples-64"
    card = (remote / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: imagen\n") and 'imagen.load("some-lab/apples-64")' in card
    assert "step 7" in card and "licence" not in card
    (remote / "evil.bin").write_bytes(b"a pickle")
    loaded = imagen.load("some-lab/apples-64")
    assert not list(hub.parent.glob("cache/**/*.bin"))
    same = Cascade.load(saved)
    assert loaded.stages[0].sha256 == same.stages[0].sha256
    assert loaded.sample([""], progress=False) == same.sample([""], progress=False)


def test_a_second_upload_replaces_the_weights_and_the_card(hub: Path, saved: Path) -> None:
    push(saved, "a/b", f"{MARK} first")
    cascade = Cascade.load(saved)
    torch.nn.init.ones_(next(cascade.stages[0].unet.parameters()))
    cascade.save(saved)
    remote = hub / "a" / "b"
    (remote / "style.safetensors").write_bytes(b"another file of the owner")
    push(saved, "a/b", f"{MARK} second")
    assert (remote / "README.md").read_text() == f"{MARK} second"
    names = {path.name for path in remote.glob("*.safetensors")}
    assert names == {path.name for path in saved.glob("*.safetensors")} | {"style.safetensors"} and len(names) == 2


def test_licences_accompany_the_weights(hub: Path, saved: Path, tmp_path: Path) -> None:
    (saved / "LICENSE.md").write_text("terms")
    push(saved, "a/b", "card")
    imagen.load("a/b").save(tmp_path / "copy")
    assert (tmp_path / "copy" / "LICENSE.md").read_text() == "terms"


def test_an_existing_card_is_not_replaced(hub: Path, saved: Path) -> None:
    (saved / "README.md").write_text("mine")
    push(saved, "a/b", "generated")
    assert (hub / "a" / "b" / "README.md").read_text() == "mine"
    assert imagen.load("a/b").stages[0].config.resolution == 8


def test_a_missing_repository_is_a_user_error(hub: Path, saved: Path, error_of: Any) -> None:
    with pytest.raises(
        UserError, match=r"no/where is not a local folder, and the hub's download failed: 401 .* not found"
    ):
        imagen.load("no/where")
    assert "org/name" in error_of("assemble", saved, "--out", saved.with_name("x"), "--push", "apples")
    (hub / "c" / "d").mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, hub / "c" / "d" / "model.safetensors")
    with pytest.raises(UserError, match=r"is not a cascade"):
        imagen.load("c/d")


def test_repository_names_are_recognised() -> None:
    assert is_name("org/name") and is_name(Path("DeepFloyd/IF-I-XL-v1.0"))
    assert is_name(PureWindowsPath("org/name")) and not is_name(PureWindowsPath("C:/org/name"))
    assert not any(map(is_name, ["name", "/org/name", "a/b/c", "../name", "org/", "org/.name", "-x/y"]))
