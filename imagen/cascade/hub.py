"""Download cascades from the Hugging Face hub, as in `imagen.load("org/name")`, and upload them.

Downloads only `cascade.json`, safetensors files and licences, which cannot run code.
"""

import re
from pathlib import Path, PurePath

from imagen.errors import UserError
from imagen.files import write_text

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CARD = "README.md"
MARK = "<!-- Each upload writes this card again. To keep your own text, delete this line. -->"
OLD = "*-" + "[0-9a-f]" * 16 + ".safetensors"  # weights are named by their hash, so new ones do not replace old ones


def is_name(path: str | PurePath) -> bool:
    """Return whether `path` has the form of a repository name: org/name."""
    return bool(_NAME.fullmatch(path.as_posix() if isinstance(path, PurePath) else path))


def download(name: str) -> Path:
    """Download the cascade `name`; return its folder in the hub's local cache. Raises UserError if that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["cascade.json", "*.safetensors", "LICENSE*"]))
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name} is not a local folder, and the hub's download failed: {_reason(error)}") from None


def push(folder: str | Path, name: str, card: str) -> str:
    """Upload a folder as the repository `name`, private if it is new; return its address.

    card: written to `README.md` unless the folder has one that its owner wrote. Deletes weights of an earlier upload.
    Raises UserError, saying why, if the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    if not is_name(name):
        raise UserError(f"--push {name}: a repository is named org/name")
    if card and (not (folder / CARD).exists() or MARK in (folder / CARD).read_text(encoding="utf-8", errors="replace")):
        write_text(folder / CARD, card)
    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), ignore_patterns=[".*"], delete_patterns=[OLD])
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot push {folder} to {name}: {_reason(error)}") from None
    return f"https://huggingface.co/{name}"


def front_matter(library: str, converted: bool) -> list[str]:
    """Return the YAML front matter of a card. Converted weights have the licence of their source."""
    licence = ["license: other", "license_name: see-the-licence-of-the-converted-weights"] if converted else []
    return ["---", f"library_name: {library}", "pipeline_tag: text-to-image", *licence, "---", ""]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
