"""From records to rows: rendering, tokenising, and the mask of what the model has to produce.

The loss covers every token of a response and the end-of-turn token, never the prompt, the template's own text or
padding. The mask follows the text, not the ids, so a padding token that equals the end token cannot hide the latter.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.data._bad_rows import BadRows
from selecttkd_jax.data._config import RUN_DATE
from selecttkd_jax.data._encoding import Encoded, count_appended, cut_text, encode, encode_one, longest_token
from selecttkd_jax.data._records import Record
from selecttkd_jax.data._rendering import Rendered, check_template, render_alone, render_chat, render_plain
from selecttkd_jax.data._rows import Rows
from selecttkd_jax.data._template import ChatTemplate
from selecttkd_jax.data._tokenizer import Tokenizer
from selecttkd_jax.data._turns import Turn
from selecttkd_jax.data._workers import count_workers, map_in_order

logger = logging.getLogger(__name__)

# Handed to the tokenizer at once: enough to use its threads, small enough for memory (300 bytes a token in Python).
_CHUNK_CHARACTERS = 2**20
# Handed to a process at once: about half a second of work.
_CHUNK_RECORDS = 1024
# Messages that take longer than processes need to start: about fifteen seconds.
_WORTH_WORKERS = 50_000
# Of a long text, tokens that are made and thrown away: how a text is split may depend on the next few.
_SPARE_TOKENS = 64


class _Row(NamedTuple):
    """A tokenised row.

    Attributes:
        ids: Its tokens.
        mask: Which of them carry loss.
        ended: Whether a token closes every turn that is in it.
        whole: Whether all of its text was tokenised.
        alone: Whether it is a prompt without a response.
    """

    ids: np.ndarray
    mask: np.ndarray
    ended: bool
    whole: bool
    alone: bool

    def has_room(self, length: int) -> bool:
        """Whether a row of that length has a token of the response, or room for one."""
        return len(self.ids) < length if self.alone else bool(self.mask[:length].any())


def tokenize_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    max_length: int,
    stop_ids: Sequence[int],
    template: str = "chat",
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    date: str = RUN_DATE,
    skip_bad_rows: bool = False,
    prompts_alone: bool = False,
    name: str = "the data",
    workers: int | None = 1,
) -> Rows:
    """Tokenises records into rows with a response mask.

    A row longer than `max_length` is cut at its end, so it loses the end of its response (and then has no end-of-turn
    token: nothing teaches the student to stop there). A row whose prompt leaves room for no response token is dropped.
    A prompt alone becomes a row of the prompt as a model is given it, which carries no loss.

    Args:
        records: Records, with responses unless `prompts_alone`.
        tokenizer: The tokenizer that both models share; its chat template is used.
        max_length: Greatest number of tokens in a row, prompt included.
        stop_ids: Ids that end a turn, from `stop_ids(tokenizer, path)`.
        template: `"chat"` for the tokenizer's chat template (every assistant turn of a response carries loss, but those
            of weight 0), or `"plain"` for prompt + completion + end token.
        template_kwargs: Options of the chat template, such as `{"enable_thinking": False}`.
        date: What a template that writes today's date is told, `"2024-07-26"`.
        skip_bad_rows: Leave records out that the template or the tokenizer refuses, with a warning that counts them.
        prompts_alone: Whether records may lack a response, since somebody will write it.
        name: What the records are of, for messages.
        workers: Processes that do it; the rows are the same. None: one for each core, at most eight, and this one alone
            for less than 50,000 messages.

    Returns:
        The rows, in the records' order; log their `summary()`.

    Raises:
        InputError: A record has no response, the template does not fit, or no row is left.
    """
    check_template(tokenizer, template, template_kwargs)
    check_at_least("max_length", max_length, 2)
    chat = ChatTemplate(tokenizer, template_kwargs or {}, date) if template == "chat" else None
    records = list(records)
    if workers is None:
        messages = sum(len(record.prompt) + len(record.response) for record in records)
        workers = count_workers(messages, _WORTH_WORKERS)
    make = partial(
        _make_rows,
        tokenizer=tokenizer,
        chat=chat,
        ends=frozenset(stop_ids) if chat else frozenset([tokenizer.eos_token_id]),
        max_length=max_length,
        longest=longest_token(tokenizer),
        prompts_alone=prompts_alone,
    )
    if workers > 1:
        logger.info("%s: %s records are tokenised in %d processes", name, f"{len(records):,}", workers)
    chunks = [records[start : start + _CHUNK_RECORDS] for start in range(0, len(records), _CHUNK_RECORDS)]
    made, bad = _Made(), BadRows(name, skip_bad_rows)
    with contextlib.closing(map_in_order(make, chunks, min(workers, max(len(chunks), 1)))) as finished:
        for chunk in finished:
            made.extend(chunk)
            bad.extend(chunk.bad)

    # What the user has to know of what was lost.
    bad.finish(len(records))
    if not made.tokens:
        shortest = made.shortest_prompt
        reason = f"the shortest prompt has {shortest} tokens" if shortest else "there are no records"
        raise InputError(
            f"no row of {name} is left: {reason}, max_length is {max_length}; raise max_length or shorten the data"
        )
    for note, sources in made.notes.items():
        logger.warning(
            "the chat template leaves out %s: in %d of %d rows, first in %s",
            note,
            len(sources),
            len(records),
            sources[0],
        )
    if made.unended:
        logger.warning(
            "%d of %d rows have an assistant turn that no end-of-turn token closes: the student will not learn to stop "
            "there. Check the stop ids %s against the chat template.",
            made.unended,
            len(records),
            tuple(stop_ids),
        )
    tokens, response = tuple(made.tokens), tuple(made.response)
    return Rows(tokens, response, max_length, len(records), made.cut, made.dropped, tuple(made.sources))


@dataclasses.dataclass
class _Made:
    """What was made of some records.

    Attributes:
        tokens: Ids of each row.
        response: Which of them carry loss.
        sources: Where each row came from.
        cut: Rows that lost the end of their response.
        dropped: Records of which no response token fitted.
        unended: Records with a turn that nothing closes.
        shortest_prompt: Tokens of the shortest prompt that left no room for a response; 0 without one.
        notes: What the template leaves out, and of which records.
        bad: Records that cannot be used.
    """

    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    response: list[np.ndarray] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)
    cut: int = 0
    dropped: int = 0
    unended: int = 0
    shortest_prompt: int = 0
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bad: BadRows = dataclasses.field(default_factory=lambda: BadRows("", skip=False))

    def extend(self, later: "_Made") -> None:
        """Takes over what was made of later records, but what is wrong with them."""
        self.tokens += later.tokens
        self.response += later.response
        self.sources += later.sources
        self.cut += later.cut
        self.dropped += later.dropped
        self.unended += later.unended
        self.see_prompt(later.shortest_prompt)
        for note, sources in later.notes.items():
            self.notes.setdefault(note, []).extend(sources)

    def see_prompt(self, length: int) -> None:
        """Remembers the length of a prompt that left no room, if it is the shortest one."""
        self.shortest_prompt = min(filter(None, (self.shortest_prompt, length)), default=0)


def _make_rows(
    records: Sequence[Record],
    *,
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
    ends: Set[int],
    max_length: int,
    longest: int,
    prompts_alone: bool,
) -> _Made:
    """Tokenised chunk by chunk, cut at `max_length`, and kept where a response token is left."""
    made = _Made()
    for chunk in _rendered(records, chat, made.bad, made.notes, prompts_alone):
        for row, source in _tokenize_chunk(chunk, tokenizer, ends, max_length, longest, made.bad, chat is None):
            made.unended += not row.ended
            if row.has_room(max_length):
                made.cut += bool(row.mask[max_length:].any()) or not row.whole
                made.tokens.append(row.ids[:max_length].copy())  # a view would keep what is cut
                made.response.append(row.mask[:max_length].copy())
                made.sources.append(source)
            else:
                made.dropped += 1
                made.see_prompt(int(row.mask.argmax()) or len(row.ids))
    return made


def _rendered(
    records: Sequence[Record],
    chat: ChatTemplate | None,
    bad: BadRows,
    notes: dict[str, list[str]],
    prompts_alone: bool,
) -> Iterator[list[tuple[Rendered, str]]]:
    """The records' texts with their sources, some at a time."""
    chunk, size = [], 0
    for record in records:
        with bad.row():
            rendered = _render(record, chat, prompts_alone)
            for note in rendered.notes:
                notes.setdefault(note, []).append(record.source)
            chunk.append((rendered, record.source))
            size += len(rendered.text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _render(record: Record, chat: ChatTemplate | None, prompts_alone: bool) -> Rendered:
    if any(message["role"] == "assistant" for message in record.response):
        rendered = render_plain(record) if chat is None else render_chat(record, chat)
        if not rendered.turns:
            raise InputError(f"{record.source}: none of the answers is learned: weight is 0 or train is false")
        return rendered
    if prompts_alone:
        return render_alone(record, chat)
    raise InputError(
        f"{record.source} has a prompt but no response to learn from; if the response is in another column, set the "
        'option columns, such as columns = ["prompt", "answer"]; prompts alone are for methods whose text is written'
    )


def _tokenize_chunk(
    chunk: Sequence[tuple[Rendered, str]],
    tokenizer: Tokenizer,
    ends: Set[int],
    max_length: int,
    longest: int,
    bad: BadRows,
    plain: bool,
) -> Iterator[tuple[_Row, str]]:
    """The row of each text, with its source; texts far longer than a row are not tokenised to their end."""
    needed = max_length + _SPARE_TOKENS
    texts = [cut_text(rendered.text, needed, longest) for rendered, _ in chunk]
    sources = [source for _, source in chunk]
    # A chat template writes its own begin token; plain text gets the tokenizer's.
    for (rendered, source), text, encoded in zip(
        chunk, texts, encode(tokenizer, texts, sources, bad, plain), strict=True
    ):
        if encoded is None:
            continue
        if len(text) < len(rendered.text) and len(encoded.ids) < needed:  # a tokenizer that makes texts shorter
            text, encoded = rendered.text, encode_one(tokenizer, rendered.text, source, plain)
        whole = len(text) == len(rendered.text)
        turns = rendered.turns
        if plain and whole:
            kept = len(encoded.ids) - count_appended(encoded)
            encoded = Encoded(encoded.ids[:kept], encoded.starts[:kept], encoded.ends[:kept])
            if turns:
                encoded = _append_end(encoded, tokenizer.eos_token_id, len(text))
                turns = [turns[0]._replace(limit=len(text) + 1)]
        yield _mask_turns(encoded, turns, ends, len(text) if not whole else None, rendered.unfinished), source


def _append_end(encoded: Encoded, end: int, place: int) -> Encoded:
    """With the token `end` behind the text, whose last character is in front of `place`."""
    return Encoded([*encoded.ids, end], np.append(encoded.starts, place), np.append(encoded.ends, place + 1))


def _mask_turns(encoded: Encoded, turns: Sequence[Turn], ends: Set[int], cut: int | None, unfinished: bool) -> _Row:
    """Marks each turn from its first token to its end-of-turn token, which the last one lacks if it is `unfinished`.

    `cut` is where the text was cut, if it was.
    """
    mask = np.zeros(len(encoded.ids), bool)
    ended = whole = True
    for turn in turns:
        finished = not (unfinished and turn is turns[-1])
        for start, end in turn.spans:
            end = end if finished else min(end, turn.text_end)
            # A token that joins the prompt's last space to the response's first word belongs to the response.
            first = np.searchsorted(encoded.ends, start, side="right")
            mask[first : np.searchsorted(encoded.starts, end, side="left")] = True
        if cut is not None and turn.text_end >= cut:
            whole = False
            continue
        places = (turn.text_end, turn.spans[-1][1], turn.limit)
        text_end, span_end, limit = (int(np.searchsorted(encoded.starts, at, side="left")) for at in places)
        closing = next((index for index in range(text_end, limit) if encoded.ids[index] in ends), None)
        if not finished:
            continue
        if closing is not None:
            mask[span_end : closing + 1] = True
        ended &= closing is not None or (cut is not None and turn.limit >= cut)
    mask[:1] = False  # nothing predicts a row's first token
    return _Row(np.asarray(encoded.ids, np.int32), mask, ended, whole, alone=not turns)
