"""From records to text, and to the prompts that models answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from selecttkd_jax._errors import InputError, check_one_of
from selecttkd_jax.data._config import RUN_DATE, TEMPLATES
from selecttkd_jax.data._encoding import count_appended, encode_one
from selecttkd_jax.data._marks import CALLS, CONTENT, NAME, REASONING
from selecttkd_jax.data._messages import LEARNING_KEYS, REASONING_KEYS, Message, is_learned
from selecttkd_jax.data._records import Record
from selecttkd_jax.data._template import ChatTemplate
from selecttkd_jax.data._tokenizer import Tokenizer
from selecttkd_jax.data._turns import Turn, TurnFinder

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")


class Rendered(NamedTuple):
    """A record as text.

    Attributes:
        text: The whole conversation.
        turns: Where in it the student learns.
        notes: What the template does not say of what the record says, in words.
        unfinished: Whether the last turn was cut where it was written.
    """

    text: str
    turns: list[Turn]
    notes: set[str]
    unfinished: bool = False


def check_template(tokenizer: Tokenizer, template: str, template_kwargs: Mapping[str, Any] | None = None) -> None:
    """Raises InputError unless `template` is known, the tokenizer can serve it, and it has options at all."""
    check_one_of("template", template, TEMPLATES)
    if template == "chat" and not tokenizer.chat_template:
        raise InputError('the tokenizer has no chat template; use template = "plain" (prompt + completion + end token)')
    if template == "plain" and tokenizer.eos_token_id is None:
        raise InputError('template = "plain" ends each row with the end token; the tokenizer has no eos_token')
    if template == "plain" and template_kwargs:
        raise InputError('template_kwargs are options of a chat template; template = "plain" has none')


def render_prompt(
    record: Record,
    tokenizer: Tokenizer,
    template: str = "chat",
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    date: str = RUN_DATE,
) -> list[int]:
    """The ids a model answers: all messages before the last assistant turn, and the generation prompt.

    Args:
        record: Any record; what follows its last assistant turn is left out.
        tokenizer: The model's tokenizer.
        template: `"chat"`, or `"plain"` for the prompt's bare text.
        template_kwargs: Options of the chat template, such as `{"enable_thinking": False}`.
        date: What a template that writes today's date is told.

    Returns:
        Token ids.

    Raises:
        InputError: The tokenizer lacks a chat template, or the template refuses the messages.
    """
    check_template(tokenizer, template, template_kwargs)
    if template == "plain":
        encoded = encode_one(tokenizer, render_plain_prompt(record), record.source, add_special_tokens=True)
        return encoded.ids[: len(encoded.ids) - count_appended(encoded)]
    text = render_chat_prompt(record, ChatTemplate(tokenizer, template_kwargs or {}, date))
    return encode_one(tokenizer, text, record.source).ids


def render_chat_prompt(record: Record, template: ChatTemplate) -> str:
    """The text that `render_prompt` tokenises."""

    def render(those: Sequence[Message]) -> str:
        return template.render(those, record.tools, record.template_kwargs, add_generation_prompt=True)

    try:
        return render(_with_contents(record.asked, render))
    except InputError as error:
        raise InputError(f"{record.source}: {error}") from error


def render_alone(record: Record, template: ChatTemplate | None) -> Rendered:
    """A prompt without a response, as a model is given it; `template` is None for plain text.

    Raises:
        InputError: There is nothing in it that could be answered; names the record.
    """
    last = record.prompt[-1]
    if last["role"] not in ("user", "tool"):
        raise InputError(
            f"{record.source} ends with a message of role {last['role']}, which nobody answers; end it with the user's"
        )
    if not (last.get("content") or "").strip():
        raise InputError(f"{record.source} has an empty prompt; remove the record or fill it")
    if template is None:
        return Rendered(render_plain_prompt(record), [], _plain_notes(record))
    notes = template.unread(record.prompt, record.tools, record.template_kwargs)
    return Rendered(render_chat_prompt(record, template), [], notes)


def render_chat(record: Record, template: ChatTemplate) -> Rendered:
    """Renders a whole conversation and finds the assistant's turns in its response part.

    Raises:
        InputError: The template refuses the messages, or writes them so that a turn cannot be found; names the record.
    """
    messages = [*record.prompt, *record.response]
    tools, options = record.tools, record.template_kwargs
    learned = [index for index in range(len(record.prompt), len(messages)) if is_learned(messages[index])]

    def render(those: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return template.render(those, tools, options, add_generation_prompt)

    try:
        messages = _with_contents(messages, render)
        finder = TurnFinder(messages, render)
        if template.marks_generation(tools):
            turns = finder.find_marked(learned, lambda those: template.render_generated(those, tools, options))
        else:
            turns = [finder.find(index) for index in learned]
        notes = template.unread(messages, tools, options) | _left_out(messages, turns, finder)
    except InputError as error:
        raise InputError(f"{record.source}: {error}") from error
    return Rendered(finder.text, turns, notes, record.unfinished)


def render_plain(record: Record) -> Rendered:
    """Prompt and completion as one text, for base models; the caller appends the end token."""
    prompt = render_plain_prompt(record)
    if len(record.response) != 1:
        raise InputError(f'{record.source} has several turns; template = "plain" takes one prompt and one completion')
    answer = record.response[0]
    if not isinstance(answer.get("content"), str):
        raise InputError(f'{record.source}: template = "plain" takes a text as completion, found a call of tools')
    text = prompt + answer["content"]
    notes = _plain_notes(record)
    notes |= {f"{key!r} of messages" for key in answer.keys() - {"role", "content", *LEARNING_KEYS}}
    turns = [Turn(1, ((len(prompt), len(text)),), len(text), len(text))] if is_learned(answer) else []
    return Rendered(text, turns, notes, record.unfinished)


def render_plain_prompt(record: Record) -> str:
    """The bare text of a record whose prompt is one user message."""
    if len(record.prompt) != 1 or record.prompt[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in record.prompt)
        raise InputError(f'{record.source}: template = "plain" takes one prompt text, found messages of {roles}')
    return record.prompt[0]["content"]


def _plain_notes(record: Record) -> set[str]:
    """What plain text has no place for beside the messages."""
    notes = {"'tools'"} if record.tools else set()
    return notes | {f"{key!r} of chat_template_kwargs" for key in record.template_kwargs}


def _with_contents(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> Sequence[Message]:
    """The messages, calls of tools with an empty text in place of none where the template can only read those."""
    filled = [message if message.get("content") is not None else {**message, "content": ""} for message in messages]
    if filled != list(messages):
        try:
            render(messages)
        except InputError:
            return filled
    return messages


def _left_out(messages: Sequence[Message], turns: Sequence[Turn], finder: TurnFinder) -> set[str]:
    """What the template writes nothing of, by its marks; and of answers, what is not in their own part of the text."""
    places = finder.found.places
    if not places:
        return set()  # the template refuses marks
    notes: set[str] = set()
    learned = {turn.message: turn for turn in turns}
    for index, message in enumerate(messages):
        content, written = message.get("content") or "", places.get(index, set())
        owner = "an answer" if message["role"] == "assistant" else f"a {message['role']} message"
        if content.strip() and CONTENT not in written:
            notes.add(f"the text of {owner}")
        if message.get("tool_calls") and not written & {CALLS, NAME}:
            notes.add(f"the tool calls of {owner}")
        if index not in learned:
            continue
        if any((message.get(key) or "").strip() for key in REASONING_KEYS) and REASONING not in written:
            notes.add("the reasoning of an answer")
        # Reasoning within the text: a template may move it, but in the turn it must be.
        turn = learned[index]
        if CONTENT in written and _dense(content) not in _dense(finder.text[turn.spans[0][0] : turn.text_end]):
            notes.add("part of the text of an answer, such as its reasoning")
    return notes


def _dense(text: str) -> str:
    """The text without white space, without empty thoughts, and without the tag that a generation prompt may write."""
    return "".join(_EMPTY_THOUGHT.sub("", text).split()).removeprefix("<think>")
