"""A model directory to the Hugging Face hub: its own files alone, in a private repository unless said otherwise."""

import fnmatch
import logging
from pathlib import Path

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home, first_line, read_json_object, resolve_inside
from selecttkd_jax._provenance import library_version
from selecttkd_jax.runs._evaluate import trained_student
from selecttkd_jax.runs._saved import is_run

logger = logging.getLogger(__name__)

_ADAPTER = "adapter_config.json"


def push(directory: str | Path, name: str, *, public: bool = False, adapter: bool = False, message: str = "") -> str:
    """Uploads a model, making its repository where there is none.

    A repository that is there keeps being private or public, and its other files.

    Args:
        directory: A run, of which the exported student goes, or a directory of a model or an adapter.
        name: `owner/name`, or a name of one's own.
        public: Makes a new repository that everybody sees.
        adapter: Of a run, its adapters instead of the student.
        message: Of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: There is nothing to upload, something in it should not be, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    folder = _find(expand_home(directory), adapter=adapter)
    files = _list_files(folder)
    api = HfApi()
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True, repo_type="model")
        logger.info("uploading %d files of %s to %s", len(files), folder, repository.repo_id)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=files,
            commit_message=message or f"Upload by selecttkd_jax {library_version()}",
        )
        if public and api.repo_info(repository.repo_id).private:
            logger.warning("%s was there before, as a private repository, and stays one", repository.repo_id)
    except LocalTokenNotFoundError:
        raise InputError("the hub asks who you are: hf auth login, or set HF_TOKEN") from None
    except HFValidationError as error:
        raise InputError(f"{name} is no name of a repository: {_without_token(first_line(error))}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise InputError(
                f"the hub does not let you write {name} (status {status}): hf auth login, or set HF_TOKEN to a token "
                "that may write"
            ) from None
        raise InputError(f"the hub refuses {name}: {_without_token(first_line(error))}") from None
    except OSError as error:  # no connection, no answer in time
        raise InputError(f"the hub cannot be reached: {_without_token(first_line(error))}") from None
    return str(repository)


def _find(directory: Path, *, adapter: bool) -> Path:
    """The folder that is meant."""
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; name a run's, or a model's")
    if is_run(directory):
        folder = directory / "adapter" if adapter else Path(trained_student(directory))
        if not folder.is_dir():
            raise InputError(f"{directory} has no adapter: it trained all weights, or has not ended; push its student")
    elif adapter:
        raise InputError(f"--adapter is for runs; {directory} is none, so that what is in it goes as it is")
    else:
        folder = directory
    if (folder / _ADAPTER).is_file():
        base = read_json_object(folder / _ADAPTER).get("base_model_name_or_path")
        if not isinstance(base, str) or expand_home(base).is_absolute():
            raise InputError(
                f"{folder / _ADAPTER} names its base model by a path of this machine, {base}, from which nobody else "
                "could load it; write the base's name on the hub there"
            )
    elif (folder / "config.json").is_file():
        models.check_weights(folder)
    else:
        raise InputError(f"{folder} is no model's directory: it has neither config.json nor {_ADAPTER}")
    if not (folder / "README.md").is_file():
        logger.warning("%s has no model card: selecttkd export writes one", folder)
    return folder


def _list_files(folder: Path) -> list[str]:
    """What of a folder is a model's: anything else stays here, and a link that leads out of it is refused."""
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [name for name in found if any(_matches(name, pattern) for pattern in models.MODEL_FILES)]
    for name in kept:
        resolve_inside(folder, name, folder)
    if left := sorted(set(found) - set(kept)):
        logger.warning("not uploaded, since no model's: %s%s", ", ".join(left[:5]), " and more" if left[5:] else "")
    return kept


def _matches(name: str, pattern: str) -> bool:
    """Whether a file is in the pattern's folder, and called as it says; `*` alone would pass over folders, too."""
    (folder, _, last), (of, _, like) = name.rpartition("/"), pattern.rpartition("/")
    return folder == of and fnmatch.fnmatchcase(last, like)


def _without_token(text: str) -> str:
    """Whatever a library says, a token is never part of it."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text
