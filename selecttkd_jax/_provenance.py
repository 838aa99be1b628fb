"""Which code this is: version and commit, for the records of what it made. Nothing here needs JAX."""

import functools
import json
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGE = "selecttkd-jax"


def library_version() -> str:
    """The installed package's version, or `unknown`."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def library_commit() -> str | None:
    """The commit of this code where it is known: of a checkout (`-dirty` where files are changed), or that pip fetched.

    A package inside somebody else's repository, in a virtual environment there, has no commit of its own.
    """
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        origin = json.loads(metadata.distribution(_PACKAGE).read_text("direct_url.json") or "{}")
        return origin.get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None


def describe_library() -> str:
    """`selecttkd_jax 0.2.0, commit 0123456789ab`."""
    commit = library_commit()
    return f"selecttkd_jax {library_version()}" + ("" if commit is None else f", commit {_shortened(commit)}")


def _shortened(commit: str) -> str:
    name, dash, state = commit.partition("-")
    return f"{name[:12]}{dash}{state}"


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None where it is not there or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
