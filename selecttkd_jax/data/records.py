"""Records: the shapes of training data a user may have, read from JSONL, `datasets` or the hub.

Accepted shapes, one JSON object a line (other keys are ignored):

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
    {"prompt": "...", "completion": "..."}
    {"prompt": "..."}                                                     for on-policy generation
    {"prompt": "...", "teacher_response": "...", "student_response": "..."}

A prompt may be a list of messages too; raw columns are mapped by `columns=("question", "answer")`.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax.checks import InputError
from selecttkd_jax.data.tokenizer import first_line, looks_like_path

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAPES = "messages; prompt + completion; prompt; prompt + teacher_response + student_response"
_PROMPT_NAMES = ("question", "instruction", "prompt", "input", "query", "problem")
_RESPONSE_NAMES = ("answer", "output", "response", "completion", "solution", "target")


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        prompt: the messages that carry no loss.
        response: the messages from the first trained assistant turn on; empty for a prompt alone. In contrastive
            records it is the teacher's.
        student_response: the student's own answer in contrastive records; empty otherwise.
        source: where the record came from, for error messages: `train.jsonl line 7`.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...] = ()
    student_response: tuple[Message, ...] = ()
    source: str = "record"


def read_records(path: str | Path, columns: Sequence[str] | None = None, split: str = "train") -> list[Record]:
    """Reads a data set.

    Args:
        path: a JSONL file, a directory written by `datasets` (`save_to_disk`), or a hub name: `"owner/name"`, or
            `"owner/name:subset"` where the data set has several.
        columns: (prompt column, response column) of raw data, such as `("question", "answer")`; None expects one of
            the accepted shapes.
        split: the split of a `datasets` data set that has several.

    Returns:
        The records in file order.

    Raises:
        InputError: the data are missing, empty, or a line is broken; names the file and the line, counted from 1.
    """
    if columns is not None and (isinstance(columns, str) or len(columns) != 2):
        raise InputError(f"columns must name two columns, (prompt, response); got {columns!r}")
    file = Path(path)
    if file.is_file():
        raw = _read_jsonl(file)
    elif file.is_dir():
        raw = _read_saved_dataset(file, split)
    elif looks_like_path(path) or file.suffix in {".json", ".jsonl", ".txt", ".csv", ".parquet"}:
        raise InputError(f"data file {str(path)!r} does not exist")
    else:
        raw = _read_hub_dataset(str(path), split)
    records = [_to_record(value, source, columns) for value, source in raw]
    if not records:
        raise InputError(f"data set {str(path)!r} is empty; expected one JSON object a line ({SHAPES})")
    return records


def student_records(records: Iterable[Record]) -> list[Record]:
    """The student's side of contrastive records: its own response in place of the teacher's."""
    return [dataclasses.replace(record, response=record.student_response, student_response=()) for record in records]


def _read_jsonl(file: Path) -> Iterator[tuple[Any, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            source = f"{file} line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"{source} is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error
            if not text:
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                hint = "every line must be one whole JSON object"
                if number == 1 and text.startswith("["):
                    hint = "the file looks like one JSON array: write one object a line (JSONL) instead"
                raise InputError(f"{source} is not valid JSON: {error.msg} at column {error.colno}; {hint}") from error
            yield value, source


def _read_saved_dataset(directory: Path, split: str) -> Iterator[tuple[Any, str]]:
    if not any((directory / name).is_file() for name in ("dataset_info.json", "state.json", "dataset_dict.json")):
        files = sorted(directory.glob("*.json*"))
        hint = f"give the file itself, such as {str(files[0])!r}" if files else "write it with datasets' save_to_disk"
        raise InputError(f"directory {str(directory)!r} was not written by datasets; {hint}")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except Exception as error:
        raise InputError(f"cannot read the data set in {str(directory)!r}: {first_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise InputError(f"data set {str(directory)!r} has no split {split!r}; it has {_listed(loaded)}")
        loaded = loaded[split]
    return _number_rows(loaded, str(directory))


def _read_hub_dataset(name: str, split: str) -> Iterator[tuple[Any, str]]:
    import datasets

    repository, _, subset = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, subset or None, split=split)
    except Exception as error:
        raise InputError(
            f"{name!r} is neither a file nor a data set that could be loaded from the hub: {first_line(error)}"
        ) from error
    return _number_rows(loaded, name)


def _number_rows(rows: Iterable[Any], name: str) -> Iterator[tuple[Any, str]]:
    return ((row, f"{name} row {number}") for number, row in enumerate(rows, start=1))


def _to_record(value: Any, source: str, columns: Sequence[str] | None) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{source} must be a JSON object, got {type(value).__name__}")
    # `datasets` fills a column that a row lacks with None.
    value = {key: item for key, item in value.items() if item is not None}
    if columns is not None:
        missing = [name for name in columns if name not in value]
        if missing:
            raise InputError(f"{source} has no column {missing[0]!r}; found {_listed(value)}; check the option columns")
        prompt, response = columns
        return Record(_prompt(value, prompt, source), _response(value, response, source), source=source)
    if "messages" in value:
        return _split_conversation(_messages(value["messages"], "messages", source), source)
    if {"prompt", "teacher_response", "student_response"} <= value.keys():
        return Record(
            _prompt(value, "prompt", source),
            _response(value, "teacher_response", source),
            _response(value, "student_response", source),
            source,
        )
    if {"prompt", "completion"} <= value.keys():
        return Record(_prompt(value, "prompt", source), _response(value, "completion", source), source=source)
    # Half of a longer shape is a mistake, not a prompt alone.
    if "prompt" in value and not {"teacher_response", "student_response"} & value.keys():
        return Record(_prompt(value, "prompt", source), source=source)
    raise InputError(f"{source} has an unknown shape: found {_listed(value)}; expected {SHAPES}{_columns_hint(value)}")


def _split_conversation(messages: tuple[Message, ...], source: str) -> Record:
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    first = turns[0] if turns else len(messages)
    if first == 0:
        raise InputError(
            f"{source}: the first message is the assistant's; expected a user (or system) message before it"
        )
    return Record(messages[:first], messages[first:], source=source)


def _prompt(value: Mapping[str, Any], key: str, source: str) -> tuple[Message, ...]:
    content = value[key]
    if isinstance(content, str):
        return ({"role": "user", "content": content},)
    return _messages(content, key, source)


def _response(value: Mapping[str, Any], key: str, source: str) -> tuple[Message, ...]:
    content = value[key]
    if not isinstance(content, str):
        messages = _messages(content, key, source)
        if messages[0]["role"] != "assistant":
            raise InputError(f"{source}: {key} must begin with an assistant message, got role {messages[0]['role']!r}")
        return messages
    if not content.strip():
        raise InputError(f"{source} has an empty response ({key}); remove the record or fill it")
    return ({"role": "assistant", "content": content},)


def _messages(value: Any, key: str, source: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InputError(f"{source}: {key} must be text or a list of messages, got {type(value).__name__}")
    if not value:
        raise InputError(f"{source}: {key} is an empty list; expected at least one message")
    for number, message in enumerate(value, start=1):
        where = f"{source}: message {number} of {key}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            found = _listed(message) if isinstance(message, dict) else type(message).__name__
            raise InputError(f"{where} must be an object with role and content, found {found}")
        if message["role"] not in ROLES:
            raise InputError(f"{where} has the role {message['role']!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise InputError(f"{where} must have text as its content, got {type(message['content']).__name__}")
        if message["role"] == "assistant" and not message["content"].strip():
            raise InputError(f"{where} is an empty response; remove the record or fill it")
    return tuple(value)


def _listed(value: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, value)) or "no keys"


def _columns_hint(value: Mapping[str, Any]) -> str:
    """Which `columns` to set, where the record has two columns of text."""
    texts = [key for key, item in value.items() if isinstance(item, str)]
    if len(texts) < 2:
        return ""
    prompt = next((name for name in _PROMPT_NAMES if name in texts), texts[0])
    others = [name for name in texts if name != prompt]
    response = next((name for name in _RESPONSE_NAMES if name in others), others[0])
    return f'; for raw columns set the option columns, such as columns = ["{prompt}", "{response}"]'
