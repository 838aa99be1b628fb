"""From text to ids, with each token's place in the text."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import reading
from selecttkd_jax.data._bad_rows import BadRows
from selecttkd_jax.data._tokenizer import Tokenizer

# Where every tokenizer's splitting of a text begins anew: in front of the space or line break behind a word.
_BOUNDARY = re.compile(r"(?<=[a-zA-Z])[ \n](?=[a-zA-Z])")


class Encoded(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: Their ids.
        starts: The character at which each begins, [tokens].
        ends: The character before which each ends, [tokens].
    """

    ids: list[int]
    starts: np.ndarray
    ends: np.ndarray


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], sources: Sequence[str], bad: BadRows, add_special_tokens: bool = False
) -> list[Encoded | None]:
    """The tokens of texts; None, and an error in `bad` that names its source, for one that the tokenizer refuses."""
    try:
        return [*_encode(tokenizer, texts, add_special_tokens)]
    except Exception:
        # TypeError, OverflowError or tokenizers' bare Exception, of a text that they do not name. One by one, each text
        # that is refused says so for itself; what only many at once could not do is done.
        found: list[Encoded | None] = []
        for text, source in zip(texts, sources, strict=True):
            found.append(None)
            with bad.row():
                found[-1] = encode_one(tokenizer, text, source, add_special_tokens)
        return found


def encode_one(tokenizer: Tokenizer, text: str, source: str, add_special_tokens: bool = False) -> Encoded:
    """The tokens of one text.

    Raises:
        InputError: The tokenizer refuses it; names its source.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise InputError(f"{source} holds half a surrogate pair ({half}), which is no text") from None
    with reading(f"the text of {source}"):
        return _encode(tokenizer, [text], add_special_tokens)[0]


def cut_text(text: str, tokens: int, longest: int) -> str:
    """The begin of a text that holds its first `tokens` tokens for certain, or all of it.

    It is cut between two words, so that what is in front is tokenised as in the whole.

    Args:
        text: The text.
        tokens: How many tokens are needed.
        longest: The characters of the tokenizer's longest token, from `longest_token`.
    """
    if len(text) <= tokens * longest:
        return text
    boundary = _BOUNDARY.search(text, tokens * longest)
    return text if boundary is None else text[: boundary.start()]


def longest_token(tokenizer: Tokenizer) -> int:
    """The characters of the longest token, at least: a byte of a character is written as one."""
    return max(map(len, tokenizer.get_vocab()))


def count_appended(encoded: Encoded) -> int:
    """How many tokens at the end stand for no text: some tokenizers append an end token by themselves."""
    count = 0
    while count < len(encoded.ids) and encoded.starts[-1 - count] == encoded.ends[-1 - count] == 0:
        count += 1
    return count


def _encode(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    offsets = (np.array(each, np.int64).reshape(-1, 2) for each in encoded["offset_mapping"])
    return [Encoded(ids, each[:, 0], each[:, 1]) for ids, each in zip(encoded["input_ids"], offsets, strict=True)]
