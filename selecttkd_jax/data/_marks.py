"""Marks in messages: numbers that occur nowhere else, to see where a template writes what a message says.

A mark is a 9 and digits below 9: no part of a text and of a mark can be taken for one, no template escapes or trims
digits, and each says by itself which message it stands in, and where.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from selecttkd_jax._errors import InputError
from selecttkd_jax.data._messages import REASONING_KEYS, Message, texts_of

# Where in a message a mark stands.
BEGIN, CONTENT, REASONING, CALLS, NAME = range(5)


class Found(NamedTuple):
    """What a text with marks tells.

    Attributes:
        text: The text without them.
        begins: Where in it each message's text begins.
        ends: Where in it each message's text ends.
        places: Which places (`CONTENT` ...) of each message are there at all.
    """

    text: str
    begins: dict[int, int]
    ends: dict[int, int]
    places: dict[int, set[int]]


class Marks:
    """Marks for the messages of one conversation.

    Args:
        messages: The conversation.
        text: What the template makes of it.
    """

    def __init__(self, messages: Sequence[Message], text: str):
        self._messages = messages
        said = texts_of(messages)
        # Of any text, at least one of the many is free.
        self._stem = next(stem for stem in map(_stem, range(9**5)) if stem not in text and stem not in said)
        self._pattern = re.compile(self._stem + r"([0-8]{6})([0-8])")

    def mark(self, index: int, *, begin: bool = True, end: bool = True) -> Message:
        """Message `index` with its marks.

        Args:
            index: Of the message.
            begin: Mark where its text begins; never done for an answer, which may begin with what templates look for.
            end: Mark where its text ends.
        """
        message = copy.deepcopy(dict(self._messages[index]))
        if isinstance(message.get("content"), str) and (message["content"] or not message.get("tool_calls")):
            first = self._mark(index, BEGIN) if begin and message["role"] != "assistant" else ""
            last = self._mark(index, CONTENT) if end else ""
            message["content"] = first + message["content"] + last
        if end:
            for key in REASONING_KEYS:
                if isinstance(message.get(key), str):
                    message[key] = message[key] + self._mark(index, REASONING)
            if message.get("tool_calls"):
                self._mark_calls(message, index)
        return message

    def replace(self, index: int) -> Message:
        """An answer in place of message `index` that is a mark alone."""
        return {"role": "assistant", "content": self._mark(index, CONTENT)}

    def read(self, text: str) -> Found:
        """Takes the marks out of a text."""
        pieces: list[str] = []
        begins: dict[int, int] = {}
        ends: dict[int, int] = {}
        places: dict[int, set[int]] = {}
        taken = length = 0
        for match in self._pattern.finditer(text):
            pieces.append(text[taken : match.start()])
            length += len(pieces[-1])
            taken = match.end()
            index, place = int(match[1], 9), int(match[2])
            known = places.setdefault(index, set())
            if place == BEGIN:
                begins.setdefault(index, length)
            elif place != NAME or NAME not in known:  # a tool's result may name it again
                ends[index] = length
            known.add(place)
        return Found("".join([*pieces, text[taken:]]), begins, ends, places)

    def split_behind(self, text: str, index: int) -> str | None:
        """What is behind the end of a message, without marks; None where it has no end there."""
        found = self.read(text)
        return found.text[found.ends[index] :] if index in found.ends else None

    def split_before(self, text: str, index: int) -> str | None:
        """What is in front of the first mark of a message, without marks; None where it has none there."""
        first = next((match.start() for match in self._pattern.finditer(text) if int(match[1], 9) == index), None)
        return None if first is None else self.read(text[:first]).text

    def split_between(self, text: str, index: int, later: int) -> str | None:
        """What is between the last mark of a message and the first one of a later message."""
        behind, before = self.split_behind(text, index), self.split_before(text, later)
        if behind is None or before is None:
            return None
        start = len(self.read(text).text) - len(behind)
        return before[start:] if start <= len(before) else None

    def _mark_calls(self, message: dict[str, Any], index: int) -> None:
        """Marks every text and whole number in the arguments of the tool calls, or the last name without any."""
        marked = False
        functions = [call.get("function", call) for call in message["tool_calls"]]
        for function in functions:
            if isinstance(function, dict) and "arguments" in function:
                before = copy.deepcopy(function["arguments"])
                function["arguments"] = _mark_leaves(function["arguments"], self._mark(index, CALLS))
                marked = before != function["arguments"]
        last = functions[-1]
        if not marked and isinstance(last, dict) and isinstance(last.get("name"), str):
            last["name"] += self._mark(index, NAME)

    def _mark(self, index: int, place: int) -> str:
        if index >= 9**6:
            raise InputError(f"a conversation has {index:,} messages and more")
        return f"{self._stem}{_digits(index, 6)}{place}"


def _stem(number: int) -> str:
    return f"9{_digits(number * 7919 % 9**5, 5)}"


def _digits(number: int, count: int) -> str:
    """A number in base 9."""
    digits = ""
    for _ in range(count):
        number, digit = divmod(number, 9)
        digits = f"{digit}{digits}"
    return digits


def _mark_leaves(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return value + mark
    if isinstance(value, int) and not isinstance(value, bool):
        return int(f"{value}{mark}")
    if isinstance(value, dict):
        return {key: _mark_leaves(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark_leaves(item, mark) for item in value]
    return value
