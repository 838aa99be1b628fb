"""Where a model is: a directory, or a name on the Hugging Face hub that is brought into the local cache."""

import json
from pathlib import Path
from typing import Any

from selecttkd_jax.checks import InputError

SMALL_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)


def locate(path_or_hub_name: str | Path, *, weights: bool) -> Path:
    """The directory of a model; downloads a hub model's files where the cache lacks them.

    Args:
        path_or_hub_name: a directory, or `owner/name` on the hub.
        weights: whether the weights are needed as well as configuration and tokenizer.

    Raises:
        InputError: if there is no such directory or hub model, or the directory is empty.
    """
    path = Path(path_or_hub_name).expanduser()
    if path.is_file():
        hint = f"; convert it first: selecttkd convert {path} DIRECTORY" if path.suffix == ".gguf" else ""
        raise InputError(f"{path} is a file, expected a model directory with config.json and *.safetensors{hint}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            state = (
                "is not a model directory: it has no config.json" if any(path.iterdir()) else "is an empty directory"
            )
            raise InputError(f"{path} {state}; expected config.json, *.safetensors and tokenizer files")
        return path
    name = str(path_or_hub_name)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or name.endswith("/"):
        raise InputError(f"model directory {name} does not exist")
    return _from_hub(name, SMALL_FILES + WEIGHT_FILES if weights else SMALL_FILES)


def _from_hub(name: str, patterns: tuple[str, ...]) -> Path:
    # Imported here because it takes a while, and a local directory needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    missing = f"{name} is neither a directory here nor a model that can be had from the Hugging Face hub"
    try:
        directory = Path(snapshot_download(name, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError:
        raise InputError(f"{missing} (the hub cannot be reached and the local cache lacks it)") from None
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise InputError(f"{missing} ({str(error).splitlines()[0]})") from None
    if not (directory / "config.json").is_file():
        raise InputError(f"the hub model {name} has no config.json")
    return directory


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
