"""Tokenizers: loading, comparing token by token, real size, and the ids at which a turn ends."""

import json
import logging
from pathlib import Path
from typing import Any

from selecttkd_jax.checks import InputError

logger = logging.getLogger(__name__)

Tokenizer = Any  # a `transformers` tokenizer; the library is imported only when one is loaded

# Roles that change what a model reads or where it stops. Padding is masked here, so its id does not matter.
_COMPARED_ROLES = ("bos_token", "eos_token", "unk_token")


def load_tokenizer(path_or_hub_name: str | Path) -> Tokenizer:
    """Loads the fast tokenizer of a Hugging Face directory or hub name.

    Args:
        path_or_hub_name: a directory holding `tokenizer.json`, or a name such as `"Qwen/Qwen2.5-1.5B-Instruct"`.

    Returns:
        A `transformers` tokenizer that reports character offsets.

    Raises:
        InputError: there is no such directory, it holds no tokenizer, or the tokenizer cannot be read.
    """
    path = Path(path_or_hub_name)
    if path.is_file():
        raise InputError(f"tokenizer {str(path)!r} is a file; give the directory that holds it")
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(
                f"model directory {str(path)!r} is empty; expected config.json, weights and tokenizer.json"
            )
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise InputError(f"no tokenizer in {str(path)!r}; copy the model's tokenizer.json there")
    elif looks_like_path(path_or_hub_name):
        raise InputError(f"model directory {str(path)!r} does not exist; give a directory or a hub name (owner/name)")

    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_hub_name))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and bare Exceptions here
        raise InputError(f"cannot load a tokenizer from {str(path_or_hub_name)!r}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{str(path_or_hub_name)!r} has no fast tokenizer (tokenizer.json), which the loss mask needs")
    return tokenizer


def check_same_tokenizer(teacher_tokenizer: Tokenizer, student_tokenizer: Tokenizer) -> None:
    """Raises InputError unless every id means the same token to teacher and student.

    Compared are the vocabulary with its added tokens, id by id, and the begin, end and unknown tokens. How text is
    split (the merges) may differ: rows are tokenised once, and both models read the same ids.

    Args:
        teacher_tokenizer: the teacher's tokenizer.
        student_tokenizer: the student's tokenizer.

    Raises:
        InputError: names the first difference and both sizes.
    """
    teacher, student = _tokens_by_id(teacher_tokenizer), _tokens_by_id(student_tokenizer)
    if teacher != student:
        index = min(i for i in teacher.keys() | student.keys() if teacher.get(i) != student.get(i))
        raise InputError(
            f"teacher and student have different tokenizers: id {index} is {_shown(teacher.get(index))} for the "
            f"teacher and {_shown(student.get(index))} for the student ({len(teacher)} and {len(student)} tokens); "
            "choose two models of one family"
        )
    for role in _COMPARED_ROLES:
        ours, theirs = getattr(teacher_tokenizer, role), getattr(student_tokenizer, role)
        if ours != theirs:
            raise InputError(
                f"teacher and student disagree on {role}: {ours!r} for the teacher and {theirs!r} for the student; "
                "copy the teacher's tokenizer files into the student's directory"
            )


def tokenizer_size(tokenizer: Tokenizer) -> int:
    """Number of ids the tokenizer can produce: its largest id plus one. Heads are often padded beyond it."""
    return max(tokenizer.get_vocab().values()) + 1


def stop_ids(tokenizer: Tokenizer, path: str | Path | None = None) -> tuple[int, ...]:
    """Ids at which a response ends.

    They are the `eos_token_id` of the model's `generation_config.json` (one id or a list), the tokenizer's own end
    token, and the token with which the chat template closes an assistant's turn. A base model's end token is often
    not the one its template writes.

    Args:
        tokenizer: the model's tokenizer.
        path: the model's directory or hub name, for `generation_config.json`; None skips that file.

    Returns:
        The distinct ids in that order.

    Raises:
        InputError: `generation_config.json` cannot be read, or there is no stop id at all.
    """
    found = [*_generation_config_ids(path), tokenizer.eos_token_id, _end_of_turn_id(tokenizer)]
    ids = tuple(dict.fromkeys(int(index) for index in found if index is not None))
    if not ids:
        raise InputError("the tokenizer has no end token; set eos_token in its tokenizer_config.json")
    unknown = [index for index in ids if not 0 <= index < tokenizer_size(tokenizer)]
    if unknown:
        raise InputError(f"generation_config.json names eos_token_id {unknown[0]}, which the tokenizer does not have")
    return ids


def looks_like_path(name: str | Path) -> bool:
    """Whether `name` cannot be a hub name (`owner/name` or `name`)."""
    text = str(name)
    return isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _tokens_by_id(tokenizer: Tokenizer) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _shown(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


def _generation_config_ids(path: str | Path | None) -> list[int]:
    file = _model_file(path, "generation_config.json") if path is not None else None
    if file is None:
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise InputError(f"cannot read {str(file)!r}: {first_line(error)}") from error
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int for index in ids):
        raise InputError(f"eos_token_id in {str(file)!r} must be an integer or a list of integers, got {value!r}")
    return ids


def _model_file(path: str | Path, name: str) -> Path | None:
    """The file `name` of a model directory or hub repository, or None where it has none."""
    if Path(path).is_dir() or looks_like_path(path):
        file = Path(path) / name
        return file if file.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            str(path), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:
        return None
    return Path(found) if found else None


def _end_of_turn_id(tokenizer: Tokenizer) -> int | None:
    """The first special token that the chat template writes behind an assistant's answer."""
    if not tokenizer.chat_template:
        return None
    import jinja2

    answer = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (jinja2.TemplateError, TypeError, ValueError) as error:  # rendering the real records reports such trouble
        logger.debug("the chat template refuses the probe conversation: %s", first_line(error))
        return None
    behind = text[text.rindex(answer) + len(answer) :] if answer in text else ""
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((index for index in ids if index in special), None)
