"""Records: the shapes of training data a user may have, read from files, `datasets` or the hub.

Accepted shapes, one JSON object a line or row:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
    {"prompt": "...", "completion": "..."}
    {"prompt": "..."}                                                     for on-policy generation
    {"prompt": "...", "teacher_response": "...", "student_response": "..."}
    {"prompt": [...], "completion": "...", "finish": "stop" | "length" | "empty"}                 files of answers

A prompt may be a list of messages too; raw columns are mapped by `columns=("question", "answer")`, or with a middle one
that continues the prompt, `columns=("instruction", "input", "output")`. Beside each shape a record may have `tools` and
`chat_template_kwargs`, both for the chat template; every other key is named in a warning.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import reading, shorten
from selecttkd_jax.data._bad_rows import BadRows
from selecttkd_jax.data._files import read_rows
from selecttkd_jax.data._messages import (
    Message,
    check_messages,
    check_template_kwargs,
    check_tools,
    is_learned,
    list_keys,
)

logger = logging.getLogger(__name__)

SHAPES = "messages; prompt + completion; prompt; prompt + teacher_response + student_response"
_PROMPT_NAMES = ("question", "instruction", "prompt", "input", "query", "problem")
_RESPONSE_NAMES = ("answer", "output", "response", "completion", "solution", "target")
_TEMPLATE_NAMES = ("tools", "chat_template_kwargs")


ResponseName = Literal["response", "student_response"]
"""The responses that a record may have."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        prompt: The messages that carry no loss.
        response: The messages from the first trained assistant turn on; empty for a prompt alone. In contrastive
            records it is the teacher's.
        student_response: The student's own answer in contrastive records; empty otherwise.
        source: Where the record came from, for error messages: `train.jsonl line 7`.
        tools: JSON schemas of what the assistant may call, for the chat template.
        template_kwargs: Options of the chat template for this conversation, such as `{"enable_thinking": False}`.
        unfinished: Whether the response was cut where it was written, so that its end is not the model's.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...] = ()
    student_response: tuple[Message, ...] = ()
    source: str = "record"
    tools: Sequence[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unfinished: bool = False

    @property
    def asked(self) -> tuple[Message, ...]:
        """The messages that a model answers: all before the last assistant turn of the response, if there is one."""
        messages = (*self.prompt, *self.response)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        return messages[: turns[-1]] if self.response else messages


def read_records(
    path: str | Path, columns: Sequence[str] | None = None, split: str = "train", *, skip_bad_rows: bool = False
) -> list[Record]:
    """Reads a data set.

    Args:
        path: A JSONL, CSV or Parquet file, gzipped or not; a directory written by `datasets` (`save_to_disk`); or a hub
            name: `"owner/name"`, or `"owner/name:subset"` where the data set has several.
        columns: (prompt column, response column) of raw data, such as `("question", "answer")`, perhaps with a column
            between them that continues the prompt where it is filled; None expects one of the accepted shapes.
        split: The split of a `datasets` data set that has several.
        skip_bad_rows: Leave broken rows out, with a warning that counts them.

    Returns:
        The records in file order, without those whose answer `selecttkd generate` marked as empty.

    Raises:
        InputError: The data are missing or empty, or lines are broken; names the file and the lines, counted from 1.
    """
    if columns is not None and (isinstance(columns, str) or len(columns) not in (2, 3)):
        raise InputError(
            f"columns must name two columns, (prompt, response), or three, (prompt, its continuation, response); got "
            f"{columns!r}"
        )
    records: list[Record] = []
    unused: Counter[str] = Counter()
    empty = 0
    bad = BadRows(str(path), skip_bad_rows)
    for source, read in read_rows(path, split):
        with bad.row(), reading(source):
            value = read()
            if columns is None and _finish(value) == "empty":
                empty += 1
                continue
            record = _to_record(value, source, columns)
            records.append(record)
            unused.update(_unused_keys(value, columns))
    if empty and not records and not bad:
        raise InputError(f"all {empty} answers in {str(path)!r} are empty: their model ends where it should begin")
    if not records and not bad:
        raise InputError(f"data set {str(path)!r} is empty; expected one JSON object a line ({SHAPES})")
    bad.finish(len(records) + len(bad))
    if empty:
        logger.warning("%s: %d answers are empty and left out", path, empty)
    if unfinished := sum(record.unfinished for record in records):
        logger.warning(
            "%s: %d of %d answers were cut at their limit: what they have is learned, and not to stop there",
            path,
            unfinished,
            len(records),
        )
    if unused:
        listed = ", ".join(f"{shorten(key)} ({count:,} rows)" for key, count in unused.items())
        logger.warning("%s: not used and left out: %s", path, listed)
    return records


def student_records(records: Iterable[Record]) -> list[Record]:
    """The student's side of contrastive records: its own response in place of the teacher's."""
    return [dataclasses.replace(record, response=record.student_response, student_response=()) for record in records]


def _to_record(value: Any, source: str, columns: Sequence[str] | None) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{source} must be a JSON object, got {type(value).__name__}")
    # `datasets` fills a column that a row lacks with None.
    value = {key: item for key, item in value.items() if item is not None}
    try:
        record = _from_columns(value, columns) if columns is not None else _from_shape(value)
        if "tools" in value:
            record = dataclasses.replace(record, tools=check_tools(value["tools"]))
        if "chat_template_kwargs" in value:
            kwargs = check_template_kwargs(value["chat_template_kwargs"])
            record = dataclasses.replace(record, template_kwargs=kwargs)
    except InputError as error:
        colon = "" if str(error).startswith("has ") else ":"
        raise InputError(f"{source}{colon} {error}") from None
    return dataclasses.replace(record, source=source)


def _from_columns(value: Mapping[str, Any], columns: Sequence[str]) -> Record:
    prompt, *between, response = columns
    missing = [name for name in (prompt, response) if name not in value]
    if missing:
        raise InputError(f"has no column {missing[0]!r}; found {list_keys(value)}; check the option columns")
    messages = _prompt(value, prompt)
    for name in between:
        continuation = value.get(name, "")
        if not isinstance(continuation, str) or not isinstance(value[prompt], str):
            raise InputError(f"{prompt} and {name} must be text, to be one prompt")
        if continuation.strip():
            messages = ({"role": "user", "content": f"{value[prompt]}\n\n{continuation}"},)
    return Record(messages, _response(value, response))


def _from_shape(value: Mapping[str, Any]) -> Record:
    if "messages" in value:
        return _split_conversation(check_messages(value["messages"], "messages"))
    if {"prompt", "teacher_response", "student_response"} <= value.keys():
        responses = _response(value, "teacher_response"), _response(value, "student_response")
        return Record(_prompt(value, "prompt"), responses[0], responses[1])
    if {"prompt", "completion"} <= value.keys():
        response = _response(value, "completion")
        return Record(_prompt(value, "prompt"), response, unfinished=_finish(value) == "length")
    # Half of a longer shape is a mistake, not a prompt alone.
    if "prompt" in value and not {"teacher_response", "student_response"} & value.keys():
        return Record(_prompt(value, "prompt"))
    raise InputError(f"has an unknown shape: found {list_keys(value)}; expected {SHAPES}{_hint_columns(value)}")


def _unused_keys(value: Mapping[str, Any], columns: Sequence[str] | None) -> list[str]:
    """The keys of a record that nothing is made of."""
    if columns is not None:
        used = {*columns}
    elif value.get("messages") is not None:
        used = {"messages"}
    else:
        used = {"prompt", "completion", "teacher_response", "student_response"}
        if value.get("teacher_response") is not None and value.get("student_response") is not None:
            used.remove("completion")
        elif _finish(value) is not None:
            used |= {"finish", "index"}
    return [key for key, item in value.items() if item is not None and key not in {*used, *_TEMPLATE_NAMES}]


def _finish(value: Any) -> str | None:
    """How an answer ended, by a file of answers (`AnswerFile`); None in another file."""
    if not isinstance(value, dict) or not {"prompt", "completion", "finish"} <= value.keys():
        return None
    finish = value["finish"]
    return finish if finish in ("stop", "length", "empty") else None


def _split_conversation(messages: tuple[Message, ...]) -> Record:
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if answers and answers[0] == 0:
        raise InputError("the first message is the assistant's; expected a user (or system) message before it")
    learned = [index for index in answers if is_learned(messages[index])]
    if answers and not learned:
        raise InputError("none of the answers is learned: weight is 0 or train is false in all of them")
    first = learned[0] if learned else len(messages)
    return Record(messages[:first], messages[first:])


def _prompt(value: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    content = value[key]
    if isinstance(content, str):
        return ({"role": "user", "content": content},)
    return check_messages(content, key)


def _response(value: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    content = value[key]
    if not isinstance(content, str):
        messages = check_messages(content, key)
        if messages[0]["role"] != "assistant":
            raise InputError(f"{key} must begin with an assistant message, got role {messages[0]['role']!r}")
        return messages
    if not content.strip():
        raise InputError(f"has an empty response ({key}); remove the record or fill it")
    return ({"role": "assistant", "content": content},)


def _hint_columns(value: Mapping[str, Any]) -> str:
    """Which `columns` to set, where the record has two columns of text, or Alpaca's three."""
    texts = [key for key, item in value.items() if isinstance(item, str)]
    if len(texts) < 2:
        return ""
    prompt = next((name for name in _PROMPT_NAMES if name in texts), texts[0])
    others = [name for name in texts if name != prompt]
    response = next((name for name in _RESPONSE_NAMES if name in others), others[0])
    between = [name for name in ("input", "context") if name in others and name != response]
    named = ", ".join(f'"{name}"' for name in (prompt, *between[:1], response))
    return f"; for raw columns set the option columns, such as columns = [{named}]"
