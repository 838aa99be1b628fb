"""From messages to text: the chat template, and where in the text the assistant speaks.

Most templates do not mark the assistant's turns (`{% generation %}`), so the turns are found by rendering: a response
begins where the conversation before it, rendered with the generation prompt, ends. That is exactly the text a model
has in front of it when it answers. Templates that do mark them are treated alike.
"""

import os.path
from collections.abc import Sequence
from typing import NamedTuple

from selecttkd_jax.checks import InputError, check_one_of
from selecttkd_jax.data.records import Message, Record
from selecttkd_jax.data.tokenizer import Tokenizer, first_line

TEMPLATES = ("chat", "plain")

# Llama 3's template writes today's date into the system message unless it is given one; rows must not change overnight,
# or a run could not be resumed. This is the date the template falls back to where there is no clock.
_FIXED_DATE = "26 Jul 2024"


class Turn(NamedTuple):
    """One response within a rendered text, in characters.

    Attributes:
        start: the first character after the generation prompt.
        content_end: the end of the message's own text; the end-of-turn token comes at or after it.
        limit: where the next message's text begins; the end-of-turn token comes before it.
    """

    start: int
    content_end: int
    limit: int


def check_template(tokenizer: Tokenizer, template: str) -> None:
    """Raises InputError unless `template` is known and the tokenizer can serve it."""
    check_one_of("template", template, TEMPLATES)
    if template == "chat" and not tokenizer.chat_template:
        raise InputError('the tokenizer has no chat template; use template = "plain" (prompt + completion + end token)')
    if template == "plain" and tokenizer.eos_token_id is None:
        raise InputError('template = "plain" ends each row with the end token; the tokenizer has no eos_token')


def render_prompt(record: Record, tokenizer: Tokenizer, template: str = "chat") -> list[int]:
    """The ids a model answers: all messages before the last assistant turn, and the generation prompt.

    Args:
        record: any record; what follows its last assistant turn is left out.
        tokenizer: the model's tokenizer.
        template: `"chat"`, or `"plain"` for the prompt's bare text.

    Returns:
        Token ids.

    Raises:
        InputError: the tokenizer lacks a chat template, or the template refuses the messages.
    """
    check_template(tokenizer, template)
    if template == "plain":
        text = plain_prompt(record)
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = encoded["input_ids"]
        return ids[: len(ids) - count_appended(encoded["offset_mapping"])]
    messages = [*record.prompt, *record.response]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if record.response:
        messages = messages[: turns[-1]]
    text = _apply(tokenizer, messages, record.source, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def render_chat(record: Record, tokenizer: Tokenizer) -> tuple[str, list[Turn]]:
    """Renders a whole conversation and finds the assistant's turns in its response part."""
    messages = [*record.prompt, *record.response]
    text = _apply(tokenizer, messages, record.source)
    turns = []
    for index in range(len(record.prompt), len(messages)):
        if messages[index]["role"] == "assistant":
            start = _response_start(tokenizer, messages[:index], text, record.source)
            content_end = _end_of(messages[index], text, start)
            limit = _start_of(messages[index + 1], text, content_end) if index + 1 < len(messages) else len(text)
            turns.append(Turn(start, content_end, limit))
    return text, turns


def render_plain(record: Record) -> tuple[str, list[Turn]]:
    """Prompt and completion as one text, for base models; the caller appends the end token."""
    prompt = plain_prompt(record)
    if len(record.response) != 1:
        raise InputError(f'{record.source} has several turns; template = "plain" takes one prompt and one completion')
    text = prompt + record.response[0]["content"]
    return text, [Turn(len(prompt), len(text), len(text))]


def plain_prompt(record: Record) -> str:
    """The bare text of a record whose prompt is one user message."""
    if len(record.prompt) != 1 or record.prompt[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in record.prompt)
        raise InputError(f'{record.source}: template = "plain" takes one prompt text, found messages of {roles}')
    return record.prompt[0]["content"]


def count_appended(offsets: Sequence[tuple[int, int]]) -> int:
    """How many tokens at the end stand for no text: some tokenizers append an end token by themselves."""
    count = 0
    while count < len(offsets) and tuple(offsets[-1 - count]) == (0, 0):
        count += 1
    return count


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], source: str, add_generation_prompt: bool = False) -> str:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, date_string=_FIXED_DATE
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InputError(f"{source}: the chat template refuses these messages: {first_line(error)}") from error


def _response_start(tokenizer: Tokenizer, before: Sequence[Message], text: str, source: str) -> int:
    prompt = _apply(tokenizer, before, source, add_generation_prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    # Reasoning models' generation prompts may open a block ("<think>") that a finished turn does not show: the
    # response then begins where the two texts part, behind the messages before it.
    if text.startswith(_apply(tokenizer, before, source)):
        return len(os.path.commonprefix([text, prompt]))
    raise InputError(
        f"{source}: the chat template writes earlier messages differently once an answer follows, so the answer cannot "
        "be found; set another chat_template in the tokenizer"
    )


def _end_of(message: Message, text: str, start: int) -> int:
    """Where the message's text ends. Templates may trim white space, or rewrite the text: then `start`."""
    content = message["content"].strip()
    found = text.find(content, start)
    return start if found < 0 else found + len(content)


def _start_of(message: Message, text: str, start: int) -> int:
    found = text.find(message["content"].strip(), start) if message["content"].strip() else -1
    return len(text) if found < 0 else found
