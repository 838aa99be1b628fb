"""Tokenizers: loading, comparing token by token, real size, and the ids at which a turn ends."""

import importlib.util
import logging
from collections.abc import Set
from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import check_links, expand_home, first_line, read_json_object, reading, shorten
from selecttkd_jax.data._template_limits import check_limits
from selecttkd_jax.data._tokenizer_file import find_difference, read_tokenizer_file

logger = logging.getLogger(__name__)

Tokenizer = Any  # a `transformers` tokenizer; the library is imported only when one is loaded

# Files of a model directory from which a tokenizer, its template and its stop ids are read.
_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "additional_chat_templates")

# Roles that change what a model reads or where it stops. Padding is masked here, so its id does not matter.
_COMPARED_ROLES = ("bos_token", "eos_token", "unk_token")


def load_tokenizer(path_or_hub_name: str | Path) -> Tokenizer:
    """Loads the fast tokenizer of a Hugging Face directory or hub name.

    It gives the ids that tokenizer.json gives, where there is one: a class that transformers would choose instead, and
    that splits text otherwise, is passed over with a warning. No code that comes with a model is run.

    Args:
        path_or_hub_name: A directory holding `tokenizer.json`, or a name such as `"Qwen/Qwen2.5-1.5B-Instruct"`.

    Returns:
        A `transformers` tokenizer that reports character offsets.

    Raises:
        InputError: There is no such directory, it holds no tokenizer, or the tokenizer cannot be read or gives other
            ids than its tokenizer.json.
    """
    path = expand_home(path_or_hub_name)
    if path.is_file():
        raise InputError(f"tokenizer {str(path)!r} is a file; give the directory that holds it")
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(
                f"model directory {str(path)!r} is empty; expected config.json, weights and tokenizer.json"
            )
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise InputError(f"no tokenizer in {str(path)!r}; copy the model's tokenizer.json there")
        check_links(path, _FILES)
    elif looks_like_path(path_or_hub_name):
        raise InputError(f"model directory {str(path)!r} does not exist; give a directory or a hub name (owner/name)")
    name = path if path.is_dir() else str(path_or_hub_name)
    for file in ("tokenizer_config.json", "config.json"):
        _refuse_code(_model_file(name, file))
    file = _model_file(name, "tokenizer.json")
    if file is None:
        _check_converter(name)
    from_file = None if file is None else read_tokenizer_file(file)

    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = _load(AutoTokenizer, name)
    if from_file is None:
        return tokenizer
    difference = find_difference(tokenizer, from_file)
    if difference is None:
        return tokenizer
    replaced, tokenizer = type(tokenizer).__name__, _load(PreTrainedTokenizerFast, name)
    remaining = find_difference(tokenizer, from_file)
    if remaining is not None:
        raise InputError(
            f"the tokenizer in {str(name)!r} gives other ids than its tokenizer.json: {remaining}; save it anew with "
            "the transformers that trained the model, or remove what tokenizer_config.json changes"
        )
    logger.warning(
        "%s: tokenizer.json is used as it is; transformers would split text by its %s instead (%s), so load this "
        "model, and what is trained from it, with PreTrainedTokenizerFast",
        name,
        replaced,
        difference,
    )
    return tokenizer


def check_same_tokenizer(teacher_tokenizer: Tokenizer, student_tokenizer: Tokenizer) -> None:
    """Raises InputError unless every id means the same token to teacher and student.

    Compared are the vocabulary with its added tokens, id by id, and the begin, end and unknown tokens. How text is
    split (the merges) may differ: rows are tokenised once, and both models read the same ids. A padding token that only
    one of them has may differ, too: rows are padded without it.

    Args:
        teacher_tokenizer: The teacher's tokenizer.
        student_tokenizer: The student's tokenizer.

    Raises:
        InputError: Names the first difference and both sizes.
    """
    teacher, student = _tokens_by_id(teacher_tokenizer), _tokens_by_id(student_tokenizer)
    padding = _own_padding(teacher_tokenizer, student), _own_padding(student_tokenizer, teacher)
    teacher, student = _without(teacher, padding[0]), _without(student, padding[1])
    if teacher != student:
        different = {i for i in teacher.keys() | student.keys() if teacher.get(i) != student.get(i)}
        index = min(different)
        raise InputError(
            f"teacher and student have different tokenizers: id {index} is {_show_token(teacher.get(index))} for the "
            f"teacher and {_show_token(student.get(index))} for the student ({len(teacher)} and {len(student)} tokens)"
            f"; {_advise(different, teacher_tokenizer, student_tokenizer)}"
        )
    for role in _COMPARED_ROLES:
        ours, theirs = getattr(teacher_tokenizer, role), getattr(student_tokenizer, role)
        if ours != theirs:
            raise InputError(
                f"teacher and student disagree on {role}: {shorten(ours)} for the teacher and {shorten(theirs)} for "
                "the student; copy the teacher's tokenizer files into the student's directory"
            )


def tokenizer_size(tokenizer: Tokenizer, other: Tokenizer | None = None) -> int:
    """Number of ids the tokenizer can produce: its largest id plus one. Heads are often padded beyond it.

    Args:
        tokenizer: The tokenizer.
        other: One that passes `check_same_tokenizer` with it; ids that only one of them has are then left out.
    """
    tokens = _tokens_by_id(tokenizer)
    shared = tokens if other is None else tokens.keys() & _tokens_by_id(other).keys()
    return max(shared) + 1


def stop_ids(tokenizer: Tokenizer, path: str | Path | None = None) -> tuple[int, ...]:
    """Ids at which a response ends.

    They are the `eos_token_id` (one id or a list) of the model's `generation_config.json`, or of its `config.json`
    where the first names none, as transformers has it; the tokenizer's own end token; and the token with which the
    chat template closes an assistant's turn. A base model's end token is often not the one its template writes.

    Args:
        tokenizer: The model's tokenizer.
        path: The model's directory or hub name, for both files; None skips them.

    Returns:
        The distinct ids in that order.

    Raises:
        InputError: One of the files cannot be read or names no token, or there is no stop id at all.
    """
    size = tokenizer_size(tokenizer)
    configured = [] if path is None else _configured_ids(path, size)
    found = [*configured, tokenizer.eos_token_id, _end_of_turn_id(tokenizer)]
    ids = tuple(dict.fromkeys(int(index) for index in found if index is not None))
    if not ids:
        raise InputError("the tokenizer has no end token; set eos_token in its tokenizer_config.json")
    return ids


def looks_like_path(name: str | Path) -> bool:
    """Whether `name` cannot be a hub name (`owner/name` or `name`)."""
    text = str(name)
    return isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _load(loader: Any, name: str | Path) -> Tokenizer:
    # transformers and tokenizers raise OSError, ValueError, KeyError, bare Exceptions and panics here.
    with reading(f"the tokenizer in {str(name)!r}"):
        tokenizer = loader.from_pretrained(str(name), trust_remote_code=False)
        tokenizer("The wrong type of a setting shows only where it is used.")
    if not tokenizer.is_fast:
        raise InputError(f"{str(name)!r} has no fast tokenizer (tokenizer.json), which the loss mask needs")
    return tokenizer


def _refuse_code(file: Path | None) -> None:
    """Refuses a config file that names code of the model's own, before transformers asks whether to run it."""
    code = None if file is None else read_json_object(file).get("auto_map")
    if code:
        raise InputError(
            f"{file}: auto_map names code that comes with the model ({shorten(code)}), which is never run; remove "
            "auto_map if the model does without"
        )


def _check_converter(name: str | Path) -> None:
    """Refuses a tokenizer that only a package which is not installed could convert."""
    file = _model_file(name, "tokenizer.model")
    if file is None or _model_file(name, "vocab.json") is not None:
        return
    missing = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
    if missing:
        raise InputError(
            f"{str(name)!r} has no tokenizer.json, only {file.name}, and there is no {' or '.join(missing)} to convert "
            "it: copy the model's tokenizer.json there, or pip install sentencepiece protobuf"
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a package is looked for by importing it
        return False


def _tokens_by_id(tokenizer: Tokenizer) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _own_padding(tokenizer: Tokenizer, other: dict[int, str]) -> int | None:
    """The id of a tokenizer's padding token if the other has no such token."""
    return None if tokenizer.pad_token is None or tokenizer.pad_token in other.values() else tokenizer.pad_token_id


def _without(tokens: dict[int, str], index: int | None) -> dict[int, str]:
    return {i: token for i, token in tokens.items() if i != index}


def _advise(different: Set[int], teacher: Tokenizer, student: Tokenizer) -> str:
    if different <= {*teacher.added_tokens_decoder, *student.added_tokens_decoder}:
        return (
            "only added tokens differ: copy the teacher's tokenizer files into the student's directory if the student "
            "can do without its own"
        )
    return "choose two models of one family"


def _show_token(token: str | None) -> str:
    return "nothing" if token is None else shorten(token)


def _configured_ids(path: str | Path, size: int) -> list[int]:
    """The `eos_token_id` of the first config file that has one."""
    for name in ("generation_config.json", "config.json"):
        file = _model_file(path, name)
        value = None if file is None else read_json_object(file).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(index) is int for index in ids):
            raise InputError(
                f"eos_token_id in {str(file)!r} must be an integer or a list of integers, got {shorten(value)}"
            )
        unknown = [index for index in ids if not 0 <= index < size]
        if unknown:
            raise InputError(f"{file} names eos_token_id {unknown[0]}, which the tokenizer does not have")
        return ids
    return []


def _model_file(path: str | Path, name: str) -> Path | None:
    """The file `name` of a model directory or hub repository, or None where it has none."""
    directory = expand_home(path)
    if directory.is_dir() or looks_like_path(path):
        file = directory / name
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
    # A number that no template writes by itself.
    answer = "9310475286"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # several, and none is the default
        return None
    check_limits(template)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # rendering the real records reports such trouble
        logger.debug("the chat template refuses the probe conversation: %s", first_line(error))
        return None
    behind = text[text.rindex(answer) + len(answer) :] if answer in text else ""
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((index for index in ids if index in special), None)
