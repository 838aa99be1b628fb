"""The files that travel with a model's weights: tokenizer, chat templates, generation settings."""

import shutil
from pathlib import Path

from selecttkd_jax._outside_files import resolve_inside

# Copied unchanged.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# transformers keeps the chat templates that have names other than `default` here, a file each.
NAMED_TEMPLATES = "additional_chat_templates"
# The model card. One of ours has this line, and is replaced with the model; another one is its author's.
CARD = "README.md"
CARD_MARK = "<!-- Written by selecttkd_jax: an export into this directory replaces this file. -->"
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    CARD,
    *COMPANIONS,
    f"{NAMED_TEMPLATES}/*.jinja",
)
"""All that a directory of a model or an adapter may hold, as patterns."""


def copy_companions(source: Path, directory: Path) -> None:
    """Copies what `source` has of them.

    Raises:
        InputError: One of them is a link that leads out of `source`.
    """
    names = [name for name in COMPANIONS if (source / name).is_file()]
    if (source / NAMED_TEMPLATES).is_dir():
        names += [f"{NAMED_TEMPLATES}/{path.name}" for path in sorted((source / NAMED_TEMPLATES).glob("*.jinja"))]
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(resolve_inside(source, name, source), directory / name)


def foreign_entries(directory: Path) -> list[str]:
    """What a directory holds that no model's or adapter's directory does."""
    known = {"config.json", "adapter_config.json", "model.safetensors.index.json", *COMPANIONS}
    found = []
    for entry in sorted(directory.iterdir()):
        if entry.name == NAMED_TEMPLATES and entry.is_dir():
            found += [f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir()) if inner.suffix != ".jinja"]
        elif entry.name == CARD and _is_ours(entry):
            continue
        elif entry.name not in known and entry.suffix != ".safetensors":
            found.append(entry.name)
    return found


def _is_ours(card: Path) -> bool:
    with card.open("rb") as file:
        return CARD_MARK.encode() in file.read(2**16)
