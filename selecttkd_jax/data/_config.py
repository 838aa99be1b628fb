"""Which rows a run learns from, and how they become batches."""

import datetime
import json
from dataclasses import dataclass, field
from typing import Any

from selecttkd_jax._errors import InputError, check_at_least, check_one_of

TEMPLATES = ("chat", "plain")
PACKINGS = ("auto", "rows", "sequences", "off")
# What chat templates that write the date are told, without another one. It is no clock's: the same configuration gives
# the same rows on every day and every host. (Llama 3's template falls back to this date, too.)
RUN_DATE = "2024-07-26"


@dataclass(frozen=True)
class DataConfig:
    """Training rows, held-out rows, and the shape of a batch."""

    train: str
    """JSONL, CSV or Parquet file, directory saved by `datasets`, or hub name of a data set."""
    held_out: str | None = None
    """Rows to evaluate on, in the same forms. Left out: the last `held_out_rows` of the training data."""
    train_split: str = "train"
    """Split of `train`, where it is a `datasets` data set that has several."""
    held_out_split: str = "test"
    """Split of `held_out`, where it is a `datasets` data set that has several."""
    held_out_rows: int = 64
    """Most rows used for evaluation."""
    columns: tuple[str, ...] | None = None
    """Names of the prompt and response columns in raw data, for example: question answer. A third name between them is
    a column that continues the prompt, for example: instruction input output."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be used, with a warning that counts them, instead of refusing the data."""
    template: str = "chat"
    """chat (the tokenizer's chat template) or plain (prompt + response + end token, for base models)."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template, for example: enable_thinking = false."""
    date: str = RUN_DATE
    """What a chat template that writes today's date is told, as year-month-day."""
    max_length: int = 512
    """Tokens in a row, prompt included; longer responses are cut at their end."""
    batch_size: int = 8
    """Rows in a batch, over all devices and micro-batches; sequences where packing fills them."""
    cache: str | None = None
    """Folder in which tokenised rows are kept for the next start; off: nowhere. Left out: the user's cache directory,
    for data of 1 MiB and more."""
    packing: str = "auto"
    """Whether several rows share a sequence. rows: those of a batch, which then takes fewer sequences, and steps learn
    what they learn with off. sequences: every sequence of a batch is filled, so that a step learns from more rows; for
    methods that learn from the data's responses alone. auto: rows on an accelerator whose attention kernel serves them,
    else off."""

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("data.train is empty: name a JSONL file, a saved data set or a hub data set")
        if self.cache == "":
            raise InputError('data.cache is empty: name a folder, or "off" to keep no rows')
        check_one_of("data.template", self.template, TEMPLATES)
        check_one_of("data.packing", self.packing, PACKINGS)
        if self.columns is not None and len(self.columns) not in (2, 3):
            raise InputError(f"data.columns must name two or three columns, got {', '.join(self.columns) or 'none'}")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise InputError(f"data.date must be a date such as {RUN_DATE}, got {self.date!r}") from None
        try:
            json.dumps(self.template_kwargs)
        except (TypeError, ValueError, RecursionError):
            raise InputError("data.template_kwargs holds what JSON cannot, such as a date; write it as text") from None
        check_at_least("data.max_length", self.max_length, 2)
        check_at_least("data.batch_size", self.batch_size, 1)
        check_at_least("data.held_out_rows", self.held_out_rows, 1)
