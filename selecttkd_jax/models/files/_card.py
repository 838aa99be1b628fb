"""Model cards: the README.md of a model's directory, with the front matter that the Hugging Face hub reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import expand_home, resolve_inside
from selecttkd_jax._provenance import describe_library
from selecttkd_jax.models.files._companions import CARD, CARD_MARK
from selecttkd_jax.models.files._location import locate

_MOST_BYTES = 2**20  # of another's card that is read
_LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its name and its card say.

    Attributes:
        name: What to call it: its name on the hub, or that of its directory.
        hub_name: The model on the hub that it is, or was made from; None where nothing says so.
        license: The front matter's `license`, `license_name` and `license_link`, those that there are.
    """

    name: str
    hub_name: str | None
    license: dict[str, str]


def find_origin(path_or_hub_name: str | Path) -> Origin:
    """What is known of a model: nothing of it is guessed."""
    path = expand_home(path_or_hub_name)
    # One that is gone is a path still, and no name for others.
    local = path.is_dir() or path.is_absolute() or str(path_or_hub_name).startswith(".") or len(path.parts) > 2
    try:
        directory = locate(path_or_hub_name, weights=False)
        card = read_front_matter(resolve_inside(directory, CARD, directory))
    except InputError:  # a model that is gone: its name is left
        card = {}
    base = card.get("base_model")
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    known = {name: card[name] for name in _LICENSE if isinstance(card.get(name), str)}
    if not local:
        return Origin(str(path_or_hub_name), str(path_or_hub_name), known)
    hub_name = base if isinstance(base, str) else None
    return Origin(path.resolve().name, hub_name, known)


def read_front_matter(card: Path) -> dict[str, Any]:
    """The data at the head of a card; empty where there is no card, no front matter, or none that can be read."""
    try:
        if not card.is_file() or card.stat().st_size > _MOST_BYTES:
            return {}
        from huggingface_hub import metadata_load

        found = metadata_load(card)
    except Exception:  # YAML of others: whatever it is, it only means that nothing is known
        return {}
    return found if isinstance(found, dict) else {}


def write_card(
    title: str, body: str, origin: Origin, *, library: str = "transformers", tags: Sequence[str] = ()
) -> str:
    """The text of a card.

    Args:
        title: Its heading.
        body: Markdown.
        origin: What the model was made from: names `base_model` and the license, where they are known.
        library: What loads the model: `transformers` or `peft`.
        tags: For those who search the hub.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=origin.hub_name,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["selecttkd", *tags],
        license=origin.license.get("license"),
        license_name=origin.license.get("license_name"),
        license_link=origin.license.get("license_link"),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{CARD_MARK}\n\n# {title}\n\n{body.strip()}\n"


def pruned_card(source: str | Path, layers: Sequence[int], of: int) -> str:
    """The card of a model of which only some layers were kept.

    Args:
        source: The whole model.
        layers: Those that are left, counted from 0.
        of: How many there were.
    """
    origin = find_origin(source)
    body = (
        f"Layers {', '.join(map(str, layers))} of the {of} of `{origin.name}`, with all else as it was, by "
        f"{describe_library()}. Nothing was trained since: it is where a student starts."
    )
    return write_card(f"{origin.name} with {len(layers)} of {of} layers", body, origin, tags=["pruning"])


def describe_loading(*, chat: bool) -> str:
    """How to load a model directory: Markdown."""
    question = (
        'messages = [{"role": "user", "content": "What is the capital of France?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        if chat
        else 'inputs = tokenizer("The capital of France is", return_tensors="pt")\n'
    )
    return f"""\
## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this directory, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
{question}answer = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

vLLM and SGLang serve the directory as it is; `selecttkd generate PATH "..."` answers from it, too.
"""
