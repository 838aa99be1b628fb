"""From what [data] names to rows: read, checked for the method, tokenised, and kept for the next start."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import cache_directory, expand_home
from selecttkd_jax.runs._config import RunConfig

logger = logging.getLogger(__name__)

TRAIN, HELD_OUT = "training rows", "held-out rows"
STUDENT = "training rows with the student's responses"
CORPUS = "rows of the corpus"
# Bytes of data that take longer to tokenise than to look up.
_WORTH_KEEPING = 2**20
# Options of [data] that change no row, and those by which a data set is found, which it is known by in itself.
_HOW = {"batch_size", "packing", "cache", "workers"}
_WHICH = {"train", "train_split", "sources", "held_out", "held_out_split", "held_out_rows", "columns"}

Made = dict[str, data.Rows]


def load_rows(config: RunConfig, tokenizer: Any, stops: tuple[int, ...]) -> Made:
    """Rows of all that the run reads, by the names that the log gives them.

    Each data set is made and kept by itself: another one beside it, or another weight, changes none of its rows.
    """
    keep = partial(_keep, config, tokenizer, stops)
    held_out: Made = {}
    if config.data.held_out is not None:
        own = data.SourceConfig(
            path=config.data.held_out, split=config.data.held_out_split, columns=config.data.columns
        )
        make = partial(_make_held_out, config, tokenizer, stops)
        held_out = keep(own, {HELD_OUT: config.data.held_out_rows}, make)
    parts: dict[str, list[tuple[str, data.Rows, float | None]]] = {}
    sources = config.data.training_sources()
    for source, count in zip(sources, data.count_held_out(config.data), strict=True):
        make = partial(_make_source, config, tokenizer, stops, source, count)
        for name, rows in keep(source, {TRAIN: count}, make).items():
            parts.setdefault(name, []).append((source.path, rows, source.weight))
            if len(sources) > 1:
                tell_rows(rows, f"{name} of {source.path}")
    return (
        {name: data.join_rows(several) for name, several in parts.items()}
        | held_out
        | _load_corpus(config, tokenizer, keep)
    )


def _load_corpus(config: RunConfig, tokenizer: Any, keep: Callable[..., Made]) -> Made:
    """Rows of the method's pre-training term, where that has a corpus of its own."""
    corpus = getattr(config.method, "corpus", None)
    if corpus is None:
        return {}
    return keep(
        data.SourceConfig(path=corpus, split="train"),
        {CORPUS: 0},
        lambda: {
            CORPUS: data.read_corpus(corpus, tokenizer, config.data.max_length, skip_bad_rows=config.data.skip_bad_rows)
        },
    )


def tokenize(
    config: data.DataConfig,
    records: list[data.Record],
    tokenizer: Any,
    stops: tuple[int, ...],
    *,
    path: str = "the data",
    prompts_alone: bool = False,
) -> data.Rows:
    """Rows of `records`, as [data] has them made; `path` names them in messages."""
    return data.tokenize_records(
        records,
        tokenizer,
        config.max_length,
        stops,
        config.template,
        template_kwargs=config.template_kwargs,
        date=config.date,
        skip_bad_rows=config.skip_bad_rows,
        prompts_alone=prompts_alone,
        name=path,
        workers=config.workers,
    )


def tell_rows(rows: data.Rows, name: str) -> None:
    """A line in the log about rows, and a warning where most were dropped."""
    logger.info("%s: %s", name, rows.summary())
    if rows.dropped > rows.read // 2:
        logger.warning("%s: more than half were dropped; raise data.max_length", name)


def _make_held_out(config: RunConfig, tokenizer: Any, stops: tuple[int, ...]) -> Made:
    records = data.read_held_out(config.data)
    return {HELD_OUT: tokenize(config.data, records, tokenizer, stops, path=str(config.data.held_out))}


def _make_source(
    config: RunConfig, tokenizer: Any, stops: tuple[int, ...], source: data.SourceConfig, held_out: int
) -> Made:
    """Rows of one source, and of those that are held out of it."""
    to_rows = partial(tokenize, config.data, tokenizer=tokenizer, stops=stops, path=source.path)
    records, held_out_records = data.read_source(config.data, source, held_out)
    records = select_records(config, records, source.path)
    made = {TRAIN: to_rows(records, prompts_alone=not config.method.reads)}
    if "student_response" in config.method.reads:
        answers = to_rows(data.student_records(records))
        made[TRAIN], made[STUDENT] = _select_common(made[TRAIN], answers, source.path)
    if held_out:
        made[HELD_OUT] = to_rows(held_out_records)
    return made


def _keep(
    config: RunConfig,
    tokenizer: Any,
    stops: tuple[int, ...],
    source: data.SourceConfig,
    counts: dict[str, int],
    make: Callable[[], Made],
) -> Made:
    """What `make` makes of a data set, from where an earlier start has kept it if it has, by all that it depends on.

    `counts`: of what is made, and how many rows are held out or are held-out rows.
    """
    if config.data.cache == "off":
        return make()
    found = data.fingerprint_rows(source.path, source.split or config.data.train_split)
    if found is None or (config.data.cache is None and found[1] < _WORTH_KEEPING):
        return make()
    options = dataclasses.asdict(config.data)
    key = {
        "data": [found[0], source.path, source.split, source.columns, counts],
        "options": {name: value for name, value in options.items() if name not in _HOW | _WHICH},
        "tokenizer": data.fingerprint_tokenizer(tokenizer),
        "stop_ids": stops,
        "method": [config.method.name, *config.method.reads, bool(config.method.writes)],
    }
    return data.load_rows(_folder(config.data.cache), key, make)


def _folder(cache: str | None) -> Path | None:
    """Where rows are kept; None where there is no place for them."""
    try:
        return cache_directory() / "rows" if cache is None else expand_home(cache)
    except InputError as error:
        logger.warning("rows are not kept: %s", error)
        return None


def select_records(config: RunConfig, records: list[data.Record], path: str) -> list[data.Record]:
    """The training records of `path` that serve the method; warns where they have what it does not look at.

    Raises:
        InputError: Records lack what the method asks for.
    """
    method = config.method
    if "response" in method.reads and not any(record.response for record in records):
        raise InputError(
            f"{path} has prompts alone, and method {method.name}, as it is set, learns from stored "
            "responses; let `selecttkd generate` write them, or take a method that does, such as on_policy or seqkd"
        )
    if "student_response" in method.reads and (one := [record for record in records if not record.student_response]):
        raise InputError(
            f"{one[0].source} has no student_response ({len(one)} of {len(records)} records have none), and method "
            f"{method.name}, as it is set, learns from two stored responses"
        )
    contrastive = sum(bool(record.student_response) for record in records)
    if contrastive and "student_response" not in method.reads:
        logger.warning(
            "%d of %d training records have a student_response, which method %s, as it is set, does not look at; "
            'distillm2 with method.teacher_text and student_text = "stored" learns from both responses',
            contrastive,
            len(records),
            method.name,
        )
    if not method.writes:
        return records
    blank = [record.source for record in records if not _asks_something(record)]
    if blank and (len(blank) == len(records) or not config.data.skip_bad_rows):
        raise InputError(
            f"{blank[0]} has an empty prompt ({len(blank)} of {len(records)} records do), and under method "
            f"{method.name} a model has to answer it; remove the record, or set the option columns"
        )
    if blank:
        logger.warning("%d of %d training records have an empty prompt and are skipped", len(blank), len(records))
    return list(filter(_asks_something, records))


def _select_common(first: data.Rows, second: data.Rows, path: str) -> tuple[data.Rows, data.Rows]:
    """The rows of the records that both have kept."""
    common = set(first.sources) & set(second.sources)
    if not common:
        raise InputError(f"no record of {path} has room for both of its responses; raise data.max_length")
    if len(common) < max(len(first), len(second)):
        logger.info("%d records have room for both of their responses", len(common))
    return first.select(common), second.select(common)


def _asks_something(record: data.Record) -> bool:
    return any((message.get("content") or "").strip() for message in record.prompt)
