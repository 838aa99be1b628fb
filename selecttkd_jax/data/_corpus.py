"""A corpus of plain texts, as language models are pre-trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import reading
from selecttkd_jax.data._bad_rows import BadRows
from selecttkd_jax.data._files import read_rows
from selecttkd_jax.data._rows import Rows


def read_corpus(
    path: str | Path, tokenizer: Any, max_length: int, split: str = "train", *, skip_bad_rows: bool = False
) -> Rows:
    """Rows of `{"text": "..."}`: every token but a row's first carries loss.

    A text gets the tokenizer's end token and is cut into rows of `max_length` tokens; what is left of it is a shorter
    row.

    Args:
        path: JSONL, or what else `read_records` reads.
        tokenizer: The models'.
        max_length: T.
        split: Of a data set of `datasets`.
        skip_bad_rows: Leave rows without a text out, with a warning that counts them.

    Raises:
        InputError: The corpus is missing or empty, or rows of it have no text; names them.
    """
    tokens: list[np.ndarray] = []
    sources: list[str] = []
    read = 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    bad = BadRows(str(path), skip_bad_rows)
    for source, value in read_rows(path, split):
        text = None
        with bad.row():
            text = _text(source, value)
        if text is None:
            continue
        read += 1
        ids = np.array([*tokenizer(text, verbose=False)["input_ids"], *end], np.int32)
        parts = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        parts = [part for part in parts if len(part) > 1]  # nothing predicts a token alone
        tokens += parts
        sources += [source] * len(parts)
    bad.finish(read + len(bad))
    if not tokens:
        raise InputError(f'the corpus {str(path)!r} is empty; expected rows such as {{"text": "..."}}')
    response = tuple(np.arange(len(row)) > 0 for row in tokens)
    return Rows(tuple(tokens), response, max_length, read=read, sources=tuple(sources))


def _text(source: str, read: Callable[[], Any]) -> str:
    with reading(source):
        row = read()
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{source} has no text; a corpus has rows such as {{"text": "..."}}')
    return text
