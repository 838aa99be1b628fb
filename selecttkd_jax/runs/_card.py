"""What a run says of its student on the model card: teacher, data, method, numbers, versions."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from selecttkd_jax import data, models
from selecttkd_jax._outside_files import expand_home
from selecttkd_jax._provenance import describe_library
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._toml import config_to_dict


@dataclass(frozen=True)
class Scores:
    """Held-out numbers of a student.

    Attributes:
        step: Finished steps.
        before: Before the first step; None where they are lost.
        after: After `step`; None where that step was not evaluated.
        skipped: How many of the steps changed nothing, their loss or gradient not finite.
    """

    step: int
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None
    skipped: int = 0


def student_card(config: RunConfig, scores: Scores, *, adapter: bool = False) -> str:
    """The card of an exported student, or of its adapters."""
    student = models.find_origin(config.models.student)
    teacher = None if config.models.teacher is None else models.find_origin(config.models.teacher)
    source = f"distilled from {teacher.name}" if teacher and config.method.needs_teacher else "fine-tuned"
    chat = config.data.template == "chat"
    parts = [
        _introduction(config, student, teacher, adapter=adapter),
        _training(config, student, teacher, scores),
        _numbers(scores),
        _adapter_loading(student) if adapter else models.describe_loading(chat=chat),
        f"## Versions\n\n{describe_library()}; jax {jax.__version__}; Python {platform.python_version()}.",
    ]
    title = f"{student.name}, {source}" + (" (adapters)" if adapter else "")
    tags = ["knowledge-distillation"] if config.method.needs_teacher else ["fine-tuning"]
    library = "peft" if adapter else "transformers"
    tags += ["lora"] if adapter else []
    return models.write_card(
        title, "\n\n".join(part.strip() for part in parts if part), student, library=library, tags=tags
    )


def _introduction(config: RunConfig, student: models.Origin, teacher: models.Origin | None, *, adapter: bool) -> str:
    what = "Adapters (LoRA) for" if adapter else "The student"
    how = "trained by selecttkd_jax, selective knowledge distillation in JAX."
    text = f"{what} `{student.name}`, {how}"
    licenses = {
        role: origin.license.get("license_name") or origin.license.get("license")
        for role, origin in (("student before training", student), ("teacher", teacher))
        if origin is not None
    }
    said = [f"of the {role}: {license}" for role, license in licenses.items() if license]
    if said:
        text += f" Licenses by the cards of the models it was made from: {'; '.join(said)}."
    return text


def _training(config: RunConfig, student: models.Origin, teacher: models.Origin | None, scores: Scores) -> str:
    optimizer, training = config.optimizer, config.training
    method = config_to_dict(config.method)
    corpus = method.pop("corpus", None)
    rows = [("student before training", f"`{student.name}`")]
    if teacher is not None:
        rows.append(("teacher", f"`{teacher.name}`"))
    rows.append(("training data", ", ".join(f"`{_name(source.path)}`" for source in config.data.training_sources())))
    if corpus is not None:
        rows.append(("pre-training corpus", f"`{_name(corpus)}`"))
    if config.data.held_out is not None:
        rows.append(("held-out data", f"`{_name(config.data.held_out)}`"))
    rows += [("method", _in_words(method)), ("objective", _in_words(config_to_dict(config.resolved().objective)))]
    if config.selection is not None:
        rows.append(("selection", _in_words(config_to_dict(config.selection))))
    if config.lora is not None:
        rows.append(("adapters", _in_words(config_to_dict(config.lora))))
    planned = "" if scores.step == training.steps else f" of {training.steps}"
    batch = f"{config.data.batch_size} rows of at most {config.data.max_length} tokens"
    rows.append(("steps", f"{scores.step}{planned}, of {batch}"))
    if scores.skipped:
        rows.append(("skipped steps", f"{scores.skipped}, whose loss or gradient was not finite"))
    rows += [
        ("optimizer", f"AdamW, learning rate {optimizer.learning_rate:g} ({optimizer.schedule})"),
        ("seed", str(config.seed)),
    ]
    return _table("Training", ("", ""), rows)


def _numbers(scores: Scores) -> str:
    known = [numbers for numbers in (scores.before, scores.after) if numbers]
    if not known:
        return ""
    heads = ("", *(["before training"] if scores.before else []), *([f"step {scores.step}"] if scores.after else []))
    names = [name for name in known[-1] if name != "tokens"]
    rows = [(f"`{name}`", *(f"{numbers[name]:.4f}" if name in numbers else "" for numbers in known)) for name in names]
    text = f"Means over {known[-1]['tokens']:,.0f} held-out response tokens, in nats where they are no shares: "
    text += "`kl` is KL(teacher || student) at temperature 1, `tar_...` the share of tokens that the teacher accepts."
    return f"{_table('Held-out numbers', heads, rows)}\n\n{text}"


def _adapter_loading(student: models.Origin) -> str:
    base = student.hub_name or "BASE"
    return f"""\
## How to load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")  # the student before training
model = PeftModel.from_pretrained(base, ".")  # this directory, or the adapter's name on the hub
```
"""


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    body = "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)
    return f"## {title}\n\n{body}"


def _in_words(options: dict[str, Any]) -> str:
    """Options in a line: `kd`, `label_share = 0.0`."""
    flat = {name: value for name, value in options.items() if not isinstance(value, dict)}
    named = [f"`{name} = {value}`" for name, value in flat.items() if name != "name"]
    inner = [f"{name}: {_in_words(value)}" for name, value in options.items() if isinstance(value, dict) and value]
    return ", ".join([*([f"`{flat['name']}`"] if "name" in flat else []), *named, *inner])


def _name(path: str) -> str:
    """A data set as others may know it: its name on the hub, or a file's without its folder, also once it is gone."""
    return path if data.is_hub_name(path) else Path(os.path.abspath(expand_home(path))).name
