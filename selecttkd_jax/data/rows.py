"""Tokenised rows: token ids, and which of them the model has to produce.

The loss covers every token of a response and the end-of-turn token, never the prompt, the template's own text or
padding. The mask follows the text, not the ids, so a padding token that equals the end token cannot hide the latter.
"""

import dataclasses
import functools
import logging
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from selecttkd_jax.checks import InputError, check_at_least
from selecttkd_jax.data.records import Record
from selecttkd_jax.data.rendering import Turn, check_template, count_appended, render_chat, render_plain
from selecttkd_jax.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_CHUNK = 1024  # texts handed to the tokenizer at once: enough to use its threads, small enough for memory


@dataclasses.dataclass(frozen=True)
class Rows:
    """Ragged rows of tokens, none longer than `max_length`, each with a response token.

    Attributes:
        tokens: int32 ids of each row.
        response: bool per token of each row: true where the token carries loss. Never true for a row's first token,
            which nothing predicts.
        max_length: the length rows were cut to, in tokens.
        read: records read.
        cut: rows that lost the end of their response.
        dropped: rows left out because no response token fitted.
    """

    tokens: tuple[np.ndarray, ...]
    response: tuple[np.ndarray, ...]
    max_length: int
    read: int
    cut: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def total_tokens(self) -> int:
        """Tokens in all rows, prompts included, padding excluded."""
        return sum(len(row) for row in self.tokens)

    @functools.cached_property
    def response_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(int(row.sum()) for row in self.response)

    @functools.cached_property
    def fingerprint(self) -> int:
        """A checksum of ids and masks, to tell whether a resumed run reads the same rows."""
        checksum = 0
        for tokens, response in zip(self.tokens, self.response, strict=True):
            checksum = zlib.crc32(response.tobytes(), zlib.crc32(tokens.tobytes(), checksum))
        return checksum

    def summary(self) -> str:
        """One line for the log: rows kept, cut and dropped, and the share of tokens that carry loss."""
        share = 100 * self.response_tokens / max(self.total_tokens, 1)
        return (
            f"{len(self):,} of {self.read:,} rows kept: {self.cut:,} cut at {self.max_length} tokens, {self.dropped:,} "
            f"dropped (prompt too long); {self.response_tokens:,} of {self.total_tokens:,} tokens ({share:.1f} %) "
            "carry loss"
        )


def tokenize_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    max_length: int,
    stop_ids: Sequence[int],
    template: str = "chat",
) -> Rows:
    """Tokenises records into rows with a response mask.

    A row longer than `max_length` is cut at its end, so it loses the end of its response (and then has no end-of-turn
    token: nothing teaches the student to stop there). A row whose prompt leaves room for no response token is dropped.

    Args:
        records: records with responses.
        tokenizer: the tokenizer that both models share; its chat template is used.
        max_length: greatest number of tokens in a row, prompt included.
        stop_ids: ids that end a turn, from `stop_ids(tokenizer, path)`.
        template: `"chat"` for the tokenizer's chat template (every assistant turn of a response carries loss), or
            `"plain"` for prompt + completion + end token.

    Returns:
        The rows, in the records' order; log their `summary()`.

    Raises:
        InputError: a record has no response, the template does not fit, or no row is left.
    """
    check_template(tokenizer, template)
    check_at_least("max_length", max_length, 2)
    records = list(records)
    for record in records:
        if not any(message["role"] == "assistant" for message in record.response):
            raise InputError(
                f"{record.source} has a prompt but no response to learn from; if the response is in another column, "
                'set the option columns, such as columns = ["prompt", "answer"]'
            )
    tokens, response = [], []
    cut = unended = 0
    shortest_prompt = None
    for start in range(0, len(records), _CHUNK):
        for ids, mask, ended in _tokenize_chunk(records[start : start + _CHUNK], tokenizer, stop_ids, template):
            unended += not ended
            if mask[:max_length].any():
                cut += bool(mask[max_length:].any())
                tokens.append(ids[:max_length])
                response.append(mask[:max_length])
            else:
                prompt_length = int(mask.argmax())
                shortest_prompt = min(prompt_length, shortest_prompt or prompt_length)
    if not tokens:
        reason = f"the shortest prompt has {shortest_prompt} tokens" if shortest_prompt else "there are no records"
        raise InputError(f"no row is left: {reason}, max_length is {max_length}; raise max_length or shorten the data")
    if unended:
        logger.warning(
            "%d of %d rows have an assistant turn that no end-of-turn token closes: the student will not learn to stop "
            "there. Check the stop ids %s against the chat template.",
            unended,
            len(records),
            tuple(stop_ids),
        )
    return Rows(tuple(tokens), tuple(response), max_length, len(records), cut, len(records) - len(tokens))


def _tokenize_chunk(records: Sequence[Record], tokenizer: Tokenizer, stop_ids: Sequence[int], template: str):
    """Yields (ids, response mask, whether every turn has an end-of-turn token) of each record."""
    plain = template == "plain"
    rendered = [render_plain(record) if plain else render_chat(record, tokenizer) for record in records]
    # A chat template writes its own begin token; plain text gets the tokenizer's.
    encoded = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=plain,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    for ids, offsets, (text, turns) in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True):
        if plain:
            kept = len(ids) - count_appended(offsets)
            ids = [*ids[:kept], tokenizer.eos_token_id]
            offsets = [*offsets[:kept], (len(text), len(text) + 1)]
            turns = [turns[0]._replace(limit=len(text) + 1)]
            stop_ids = [tokenizer.eos_token_id]
        yield _mask_turns(ids, offsets, turns, stop_ids)


def _mask_turns(ids: Sequence[int], offsets: Sequence[tuple[int, int]], turns: Sequence[Turn], stop_ids: Sequence[int]):
    """Marks each turn from its first token to its end-of-turn token. `offsets` are each token's [start, end)."""
    mask = np.zeros(len(ids), bool)
    ended = True
    for turn in turns:
        # A token that joins the prompt's last space to the response's first word belongs to the response.
        first = bisect_right(offsets, turn.start, key=itemgetter(1))
        content_end = bisect_left(offsets, turn.content_end, key=itemgetter(0))
        limit = bisect_left(offsets, turn.limit, key=itemgetter(0))
        closing = next((index for index in range(content_end, limit) if ids[index] in stop_ids), None)
        ended &= closing is not None
        mask[first : content_end if closing is None else closing + 1] = True
    mask[:1] = False  # nothing predicts a row's first token
    return np.asarray(ids, np.int32), mask, ended
