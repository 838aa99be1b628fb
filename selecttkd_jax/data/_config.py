"""Which rows a run learns from, and how they become batches."""

import datetime
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from selecttkd_jax._errors import InputError, check_at_least, check_one_of

TEMPLATES = ("chat", "plain")
PACKINGS = ("auto", "rows", "sequences", "off")
RUN_DATE = "2024-07-26"
"""What chat templates that write the date are told, without another one. It is no clock's: the same configuration gives
the same rows on every day and every host. (Llama 3's template falls back to this date, too.)"""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several data sets that a run learns from."""

    path: str
    """JSONL, CSV or Parquet file, directory saved by `datasets`, or hub name of a data set."""
    weight: float | None = None
    """How many rows come from here, relative to the other sources' weights. Left out in all sources: as many as there
    are, each once an epoch."""
    split: str | None = None
    """Split of a `datasets` data set that has several. Left out: data.train_split."""
    columns: tuple[str, ...] | None = None
    """Names of the columns in raw data. Left out: data.columns."""

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("the path of a source is empty: name a JSONL file, a saved data set or a hub data set")
        if self.weight is not None and not (0 < self.weight < math.inf):
            raise InputError(f"the weight of the source {self.path} must be more than 0 and finite, got {self.weight}")
        check_columns(f"columns of the source {self.path}", self.columns)


@dataclass(frozen=True)
class DataConfig:
    """Training rows, held-out rows, and the shape of a batch."""

    train: str | None = field(default=None, metadata={"unless": "sources"})
    """JSONL, CSV or Parquet file, directory saved by `datasets`, or hub name of a data set. Several of them stand in
    the configuration file, each as a table [[data.sources]] with its path."""
    sources: tuple[SourceConfig, ...] | None = None
    """In place of `train`: several data sets, a table [[data.sources]] each."""
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
    workers: int | None = None
    """Processes that render and tokenise rows. Left out: one for each core, at most eight, where there are 50,000
    messages or more, and this one alone for less."""
    packing: bool | str = "auto"
    """Whether several rows share a sequence. rows: those of a batch, which then takes fewer sequences, and steps learn
    what they learn with off. sequences: every sequence of a batch is filled, so that a step learns from more rows; for
    methods that learn from the data's responses alone. auto: rows on an accelerator whose attention kernel serves them,
    else off. true: sequences where the method allows them, or else rows; false: off."""

    def __post_init__(self) -> None:
        self._check_sources()
        if self.cache == "":
            raise InputError('data.cache is empty: name a folder, or "off" to keep no rows')
        check_one_of("data.template", self.template, TEMPLATES)
        check_one_of("data.packing", str(self.packing).lower(), (*PACKINGS, "true", "false"))
        check_columns("data.columns", self.columns)
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
        if self.workers is not None:
            check_at_least("data.workers", self.workers, 1)
        check_at_least("data.held_out_rows", self.held_out_rows, 1)

    def _check_sources(self) -> None:
        if self.sources is None:
            if not self.train:
                what = "missing" if self.train is None else "empty"
                raise InputError(
                    f"data.train is {what}: name a JSONL file, a saved data set or a hub data set, or several as "
                    "[[data.sources]]"
                )
            return
        if self.train is not None:
            raise InputError("data.train and [[data.sources]] both say what to learn from: leave one of them out")
        if not self.sources:
            raise InputError("data.sources is empty: write a table [[data.sources]] with a path for each data set")
        without = [source.path for source in self.sources if source.weight is None]
        if 0 < len(without) < len(self.sources):
            raise InputError(
                f"the source {without[0]} has no weight, and another source has one: weigh all of [[data.sources]] or "
                "none"
            )
        # With the split that a source has from data.train_split.
        (name, count), *_ = Counter((source.path, source.split) for source in self.training_sources()).most_common(1)
        if count > 1:
            raise InputError(
                f"the source {name[0]} stands {count} times in [[data.sources]]; name it once, with a larger weight"
            )

    def training_sources(self) -> tuple[SourceConfig, ...]:
        """What is learned from: `train` alone, or all sources, each with its split and its columns."""
        if self.sources is None:
            assert self.train is not None  # checked at construction
            return (SourceConfig(path=self.train, split=self.train_split, columns=self.columns),)
        return tuple(
            replace(
                source,
                split=self.train_split if source.split is None else source.split,
                columns=self.columns if source.columns is None else source.columns,
            )
            for source in self.sources
        )


def check_columns(name: str, columns: tuple[str, ...] | None) -> None:
    """Raises InputError unless columns are two or three, or left out."""
    if columns is not None and len(columns) not in (2, 3):
        raise InputError(f"{name} must name two or three columns, got {', '.join(columns) or 'none'}")
