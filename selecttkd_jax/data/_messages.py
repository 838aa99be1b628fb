"""Messages: what one may hold, and which of them the student learns.

    {"role": "assistant", "content": "...", "reasoning_content": "...", "tool_calls": [...], "weight": 0}

Every assistant message is learned but those with `"weight": 0` or `"train": false`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import parse_json, shorten

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# Under which names a message says what the model thought before it answered.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# What is said to us, not to the chat template.
LEARNING_KEYS = ("weight", "train")


def is_learned(message: Message) -> bool:
    """Whether a message is the assistant's and carries loss: its weight is 1, as without any."""
    return message["role"] == "assistant" and _weight(message) == 1


def check_messages(value: Any, key: str) -> tuple[Message, ...]:
    """The messages in `value`, a list or the JSON text of one.

    Args:
        value: What a record has under `key`.
        key: Its name, for messages.

    Raises:
        InputError: Names the message and what is wrong with it.
    """
    if isinstance(value, str):
        value = _parse_text(value, f"{key} must be a list of messages, got text")
    if not isinstance(value, list):
        raise InputError(f"{key} must be text or a list of messages, got {type(value).__name__}")
    if not value:
        raise InputError(f"{key} is an empty list; expected at least one message")
    return tuple(_check_message(message, f"message {number} of {key}") for number, message in enumerate(value, start=1))


def check_tools(value: Any) -> list[dict[str, Any]]:
    """The tools in `value`, a list of JSON schemas or the JSON text of one."""
    if isinstance(value, str):
        value = _parse_text(value, "tools must be a list of objects, got text")
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError(f"tools must be a list of objects, got {shorten(value)}")
    return value


def check_template_kwargs(value: Any) -> dict[str, Any]:
    """The template's options in `value`, an object or the JSON text of one."""
    if isinstance(value, str):
        value = _parse_text(value, "chat_template_kwargs must be an object, got text")
    if not isinstance(value, dict):
        raise InputError(f"chat_template_kwargs must be an object, got {shorten(value)}")
    return value


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        found = list_keys(message) if isinstance(message, dict) else type(message).__name__
        raise InputError(f"{where} must be an object with role and content, found {found}")
    message = {name: item for name, item in message.items() if item is not None}
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        raise InputError(f"{where} has the role {shorten(role)}; expected one of {', '.join(ROLES)}")
    if isinstance(calls, str):
        calls = message["tool_calls"] = _parse_text(calls, f"{where}: tool_calls must be a list of objects, got text")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        raise InputError(f"{where}: tool_calls must be a list of objects, got {shorten(calls)}")
    if content is None and not calls:
        raise InputError(f"{where} must be an object with role and content, found {list_keys(message)}")
    if content is not None and not isinstance(content, str):
        raise InputError(f"{where} must have text as its content, got {type(content).__name__}")
    for name in REASONING_KEYS:
        if not isinstance(message.get(name, ""), str):
            raise InputError(f"{where} must have text as its {name}, got {type(message[name]).__name__}")
    if role == "assistant" and not calls and not str(content).strip():
        raise InputError(f"{where} is an empty response; remove the record or fill it")
    try:
        weight = _weight(message)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if weight == 1 and role != "assistant" and any(name in message for name in LEARNING_KEYS):
        raise InputError(f"{where} is the {role}'s and cannot be learned; only assistant messages are, so give it 0")
    return message


def _weight(message: Message) -> int:
    """0 or 1."""
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and weight not in (0, 1):
        raise InputError(f"weight must be 0 (not learned) or 1 (learned), got {shorten(weight)}")
    if train is not None and not isinstance(train, bool):
        raise InputError(f"train must be true or false, got {shorten(train)}")
    if weight is not None and train is not None and bool(weight) != train:
        raise InputError(f"weight is {weight} and train is {str(train).lower()}; they say the same, so keep one")
    return 0 if weight == 0 or train is False else 1


def _parse_text(text: str, expected: str) -> Any:
    """The value of a JSON text: tables (Parquet, CSV) often hold lists as text."""
    try:
        return parse_json(text, "it")
    except InputError:
        raise InputError(f"{expected} ({shorten(text, 60)}) that is no JSON") from None


def list_keys(value: Mapping[Any, Any]) -> str:
    """The keys of an object, for a message."""
    return ", ".join(map(str, value)) or "no keys"


def texts_of(messages: Sequence[Message]) -> str:
    """All that messages say, as one text."""
    return json.dumps(list(messages), ensure_ascii=False, default=str)
