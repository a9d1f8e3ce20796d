"""Test `imagen completion` by asking bash for its completions."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from imagen.diffusion.samplers.registry import sampler_names
from imagen.presets import PRESETS

# Loads the script; `ask LINE` prints the completions of the last word of a command line.
ASK = """
source {script}
ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _shtab_imagen; echo "${{COMPREPLY[*]}}"; }}
"""


@pytest.fixture(scope="module")
def completions(imagen, tmp_path_factory):
    """Return a function that gives the completions that bash offers for the last word of each line."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "imagen.bash").write_text(imagen("completion", "bash"))
    (folder / "here").mkdir()
    (folder / "here" / "models").mkdir()
    for name in ("photo.png", "mine.toml", "mine.json", "mine.yaml", "mine.yml", "models/base.toml"):
        (folder / "here" / name).touch()

    def ask(*lines: str) -> list[set[str]]:
        asked = [f"ask imagen {line}" for line in lines]
        program = ASK.format(script=shlex.quote(str(folder / "imagen.bash"))) + "\n".join(asked)
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=folder / "here")
        assert done.returncode == 0 and done.stderr == ""
        return [set(line.split()) for line in done.stdout.split("\n")[:-1]]

    return ask


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values(completions):
    found = completions(
        *("''", "sa", "data ''", "sample c --sa", "sample c --sampler ''", "sample c --sampler ddi"),
        *(
            "train emoji_",
            "plan --gpus 2 debug_",
            "plan p --gpu h2",
            "completion ''",
            "convert d",
            "data build --caption-from ''",
        ),
    )
    commands = {"demo", "data", "presets", "config", "train", "sample", "upscale", "serve", "completion"}
    assert commands <= found[0] and "build" not in found[0]
    actions = {"build", "cifar10", "emoji", "encode", "inspect", "bench"}
    assert found[1:6] == [{"sample"}, actions, {"--sampler", "--sampler-options"}, set(sampler_names()), {"ddim"}]
    for i, beginning in ((6, "emoji_"), (7, "debug_")):
        assert found[i] == {name for name in PRESETS if name.startswith(beginning)}
    assert found[8:] == [{"h200"}, {"bash", "zsh", "fish"}, {"deepfloyd", "diffusers"}, {"folder", "name"}]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_presets_and_config_files(completions):
    own = {"mine.toml", "mine.json", "mine.yaml", "mine.yml", "models"}  # and not photo.png
    presets = {name for name in PRESETS if name.startswith("emoji_")}
    found = completions("train ''", "train mi", "config mine.t", "plan models/", "train emoji_", "sample mi")
    assert found[0] == set(PRESETS) | own
    assert found[1:5] == [own - {"models"}, {"mine.toml"}, {"models/base.toml"}, presets]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_files_for_path_arguments(completions):
    assert completions("upscale c ph", "sample c --init p", "train emoji_64 --data p", "sample c --negative ''") == [
        *({"photo.png"} for _ in range(3)),
        set(),
    ]


def test_other_shells_have_scripts(imagen, tmp_path):
    for shell, first in (("zsh", "#compdef imagen"), ("fish", "# AUTOMATICALLY GENERATED")):
        script = imagen("completion", shell)
        assert script.startswith(first) and "emoji_mini_64" in script and "dpmpp_2m_sde" in script
        path = Path(tmp_path / shell)
        path.write_text(script)
        if shutil.which(shell) is not None:
            subprocess.run([shell, "-n", path], check=True)
