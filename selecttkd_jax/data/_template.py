"""The chat template of a tokenizer, rendered as transformers renders it, on the run's date.

A template is asked for texts here and nowhere else. What it may be given: messages, tools, and options of its own such
as `enable_thinking`. A template that asks for the date gets the run's: rows must not change overnight, or a run could
not be resumed.
"""

import dataclasses
import datetime
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import first_line
from selecttkd_jax.data._config import RUN_DATE
from selecttkd_jax.data._messages import LEARNING_KEYS, REASONING_KEYS, Message
from selecttkd_jax.data._template_limits import check_limits
from selecttkd_jax.data._tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, its options and its date.

    Attributes:
        tokenizer: A `transformers` tokenizer with a chat template.
        options: Given to the template in every conversation, such as `{"enable_thinking": False}`.
        date: What the template is told to be today, `"2024-07-26"`.
    """

    tokenizer: Tokenizer
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    date: str = RUN_DATE

    def __post_init__(self) -> None:
        names = self._names(None)
        for name in self.options:
            self._check_option(name)
            if name not in names:
                raise InputError(
                    f"template_kwargs has {name}, which the chat template does not read{did_you_mean(name, names)}"
                )

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools = None,
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation.

        Raises:
            InputError: The template refuses the messages.
        """
        with self._boundary(tools):
            return self.tokenizer.apply_chat_template(
                _clean(messages),
                tools=None if tools is None else list(tools),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._variables(options),
            )

    def render_generated(
        self, messages: Sequence[Message], tools: Tools = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where in it, in characters, the template marks what the model generates."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with self._boundary(tools):
            render: Any = render_jinja_template  # whose annotations promise less than it takes and gives
            texts, spans = render(
                [_clean(messages)],
                tools=None if tools is None else list(tools),
                chat_template=self._source(tools),
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self._variables(options)},
            )
        return texts[0], list(spans[0])

    def marks_generation(self, tools: Tools) -> bool:
        """Whether the template says by `{% generation %}` what the model generates."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self._source(tools)) is not None

    def unread(self, messages: Sequence[Message], tools: Tools, options: Mapping[str, Any]) -> set[str]:
        """What a record gives that the template never looks at, in words."""
        names = self._names(tools)
        known = {"role", "content", "tool_calls", *LEARNING_KEYS, *REASONING_KEYS}  # those leave marks
        keys = {key for message in messages for key, value in message.items() if value is not None}
        found = {f"{key!r} of messages" for key in keys - known - names}
        if tools and "tools" not in names:
            found.add("'tools'")
        for name in options:
            self._check_option(name)
        return found | {f"{name!r} of chat_template_kwargs" for name in options if name not in names}

    def _variables(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        date = datetime.date.fromisoformat(self.date)
        return {"date_string": date.strftime("%d %b %Y"), **self.options, **(options or {})}

    def _source(self, tools: Tools) -> str:
        """The template's text; a tokenizer may have one of its own for tools."""
        return self.tokenizer.get_chat_template(None, None if tools is None else list(tools))

    def _names(self, tools: Tools) -> frozenset[str]:
        with self._boundary(tools):
            return _names_in(self._source(tools))

    @staticmethod
    def _check_option(name: str) -> None:
        if name in _reserved_names():
            raise InputError(f"the chat template's options cannot have {name}, which is not the template's to be told")

    @contextmanager
    def _boundary(self, tools: Tools) -> Iterator[None]:
        """Within it the template has the run's date, and whatever it raises is an InputError."""
        try:
            source = self._source(tools)
            check_limits(source)
            with _dated(source, self.date):
                yield
        except InputError:
            raise
        except Exception as error:  # a template may raise what it likes, and so may what it calls
            raise InputError(f"the chat template refuses these messages: {first_line(error)}") from error


def _clean(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: nothing that is None, and nothing that is said to us."""
    return [
        {key: value for key, value in message.items() if value is not None and key not in LEARNING_KEYS}
        for message in messages
    ]


@contextmanager
def _dated(source: str, date: str) -> Iterator[None]:
    """Lets `strftime_now` in a template tell the run's date."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    names = _compile_jinja_template(source).environment.globals
    clock = names["strftime_now"]
    names["strftime_now"] = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time()).strftime
    try:
        yield
    finally:
        names["strftime_now"] = clock


@functools.lru_cache(maxsize=64)
def _names_in(source: str) -> frozenset[str]:
    """Every name that a template reads: variables, and keys of what it is given."""
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tree = _compile_jinja_template(source).environment.parse(source)
    found = {node.name for node in tree.find_all(nodes.Name)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    return frozenset(found | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


@functools.cache
def _reserved_names() -> frozenset[str]:
    """What transformers takes itself, so that a template would never see it."""
    from transformers import PreTrainedTokenizerBase

    taken = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*taken, "messages", "conversations"} - {"documents", "kwargs"})
