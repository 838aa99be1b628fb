"""A record's prompt as a file has it."""

from typing import Any

from selecttkd_jax.data._messages import is_learned
from selecttkd_jax.data._records import Record


def describe_prompt(record: Record) -> dict[str, Any]:
    """What is asked before the last learned turn of a record, in a form that `read_records` takes.

    Returns:
        `prompt` (text, or messages where it is not one of the user's alone), and `tools` and `chat_template_kwargs` if
        the record has them.
    """
    messages = [*record.prompt, *record.response]
    learned = [index for index, message in enumerate(messages) if is_learned(message)]
    if record.response and learned:
        messages = messages[: learned[-1]]
    alone = len(messages) == 1 and set(messages[0]) == {"role", "content"} and messages[0]["role"] == "user"
    prompt = messages[0]["content"] if alone else [dict(message) for message in messages]
    described: dict[str, Any] = {"prompt": prompt}
    if record.tools is not None:
        described["tools"] = record.tools
    if record.template_kwargs:
        described["chat_template_kwargs"] = dict(record.template_kwargs)
    return described
