"""Everything that can be wrong is found before a model is loaded: configs, weights' headers, tokenizers, rows."""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import cache_directory, expand_home
from selecttkd_jax.distill import log_shared_width
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.training import Pair

logger = logging.getLogger(__name__)

_TRAIN, _HELD_OUT = "training rows", "held-out rows"
_STUDENT = "training rows with the student's responses"
_CORPUS = "rows of the corpus"
# Bytes of data that take longer to tokenise than to look up.
_WORTH_KEEPING = 2**20


@dataclass(frozen=True)
class Prepared:
    """What is known before a model is loaded.

    Attributes:
        pair: Both architectures.
        tokenizer: The one that both share.
        stop_ids: Where a response ends.
        train_rows: What is learned from.
        held_out_rows: What the student is measured on.
        student_rows: Row by row, the student's responses to the same prompts, where the method reads both.
        corpus_rows: What the method's pre-training term learns from, where that is a corpus of its own.
    """

    pair: Pair
    tokenizer: Any
    stop_ids: tuple[int, ...]
    train_rows: data.Rows
    held_out_rows: data.Rows
    student_rows: data.Rows | None = None
    corpus_rows: data.Rows | None = None


def prepare(config: RunConfig) -> Prepared:
    """Reads and checks everything but the weights themselves, and says what it found."""
    pair, tokenizer, stops = check_models(config)
    rows = _load_rows(config, tokenizer, stops)
    for name, found in rows.items():
        tell_rows(found, name)
    prepared = Prepared(
        pair=pair,
        tokenizer=tokenizer,
        stop_ids=stops,
        train_rows=rows[_TRAIN],
        held_out_rows=rows[_HELD_OUT],
        student_rows=rows.get(_STUDENT),
        corpus_rows=rows.get(_CORPUS),
    )
    for rows in filter(None, (prepared.train_rows, prepared.student_rows)):
        check_context(pair, rows, "training rows")
    if prepared.corpus_rows is not None:
        check_context(pair, prepared.corpus_rows, _CORPUS)
    check_context(pair, prepared.held_out_rows, "held-out rows")
    if config.method.writes and config.method.sampling is not None:
        check_room(config.method.sampling.max_new_tokens, config.data.max_length)
        tell_short_answers(config.method.sampling.max_new_tokens, config.data.max_length, prepared.train_rows)
        check_written(pair, config.method.sampling.max_new_tokens, config.data.max_length, prepared.train_rows)
    return prepared


def _read_and_tokenize(config: RunConfig, tokenizer: Any, stops: tuple[int, ...]) -> dict[str, data.Rows]:
    """Rows of all that the run reads, by the names that the log gives them."""
    train_records, held_out_records = read_split(config.data)
    train_records = select_records(config, train_records)
    alone = not config.method.reads
    rows = {_TRAIN: tokenize(config.data, train_records, tokenizer, stops, prompts_alone=alone)}
    if "student_response" in config.method.reads:
        answers = tokenize(config.data, data.student_records(train_records), tokenizer, stops)
        rows[_TRAIN], rows[_STUDENT] = _select_common(rows[_TRAIN], answers)
    rows[_HELD_OUT] = tokenize(config.data, held_out_records, tokenizer, stops)
    if (corpus := corpus_of(config)) is not None:
        rows[_CORPUS] = data.read_corpus(corpus, tokenizer, config.data.max_length)
    return rows


def corpus_of(config: RunConfig) -> str | None:
    """Where the method's pre-training term has rows of its own."""
    return getattr(config.method, "corpus", None)


def _load_rows(config: RunConfig, tokenizer: Any, stops: tuple[int, ...]) -> dict[str, data.Rows]:
    """The same, from where an earlier start has kept them if it has, by all that they depend on."""
    make = partial(_read_and_tokenize, config, tokenizer, stops)
    if config.data.cache == "off":
        return make()
    named = [(config.data.train, config.data.train_split), (config.data.held_out, config.data.held_out_split)]
    named.append((corpus_of(config), "train"))
    found = [data.fingerprint_rows(path, split) for path, split in named if path is not None]
    if None in found or (config.data.cache is None and sum(size for _, size in filter(None, found)) < _WORTH_KEEPING):
        return make()
    options = dataclasses.asdict(config.data)
    key = {
        "data": [checksum for checksum, _ in filter(None, found)],
        "options": {name: value for name, value in options.items() if name not in ("batch_size", "packing", "cache")},
        "tokenizer": data.fingerprint_tokenizer(tokenizer),
        "stop_ids": stops,
        "method": [config.method.name, *config.method.reads, bool(config.method.writes)],
    }
    try:
        folder = cache_directory() / "rows" if config.data.cache is None else expand_home(config.data.cache)
    except InputError as error:
        logger.warning("rows are not kept: %s", error)
        folder = None
    return data.load_rows(folder, key, make)


def check_models(config: RunConfig) -> tuple[Pair, Any, tuple[int, ...]]:
    """Configs, the headers of the weights, and tokenizers: the pair that fits together, its tokenizer and stop ids.

    Without a teacher, the student's own.
    """
    named = {"teacher": config.models.teacher, "student": config.models.student}
    given = {role: name for role, name in named.items() if name is not None}
    decoders = {role: models.read_config(name)[0] for role, name in given.items()}
    for name in given.values():
        models.check_weights(name)
    tokenizers = {role: data.load_tokenizer(name) for role, name in given.items()}
    leading = next(iter(given))
    tokenizer, student_tokenizer = tokenizers[leading], tokenizers["student"]
    data.check_same_tokenizer(tokenizer, student_tokenizer)
    stops = data.stop_ids(tokenizer, given[leading])
    if "student" in config.method.writes:
        own = data.stop_ids(student_tokenizer, config.models.student)
        if set(own) != set(stops):
            raise InputError(
                f"under method {config.method.name} the student writes, and it stops at the ids {own}, the teacher at "
                f"{stops}: answers would run on to their limit; copy the teacher's tokenizer files and "
                "generation_config.json to the student"
            )
    if config.data.template == "chat" and student_tokenizer.chat_template != tokenizer.chat_template:
        if "student" in config.method.writes:
            raise InputError(
                f"the chat templates differ, and under method {config.method.name} the student writes: the teacher "
                "would judge text in another form than its own; copy the teacher's tokenizer files to the student"
            )
        logger.warning(
            "the chat templates differ: the student learns the teacher's, and its export keeps its own; copy the "
            "teacher's tokenizer files to the student if that is not meant"
        )
    vocab_size = data.tokenizer_size(tokenizer, student_tokenizer)
    unwritable = [index for index in stops if index >= vocab_size]
    if config.method.writes and unwritable:
        raise InputError(
            f"answers are to stop at the id {unwritable[0]}, which nobody can write: student and teacher share the ids "
            f"below {vocab_size}; leave it out of eos_token_id in generation_config.json"
        )
    log_shared_width(decoders["student"].vocab_size, decoders[leading].vocab_size, vocab_size)
    for role, decoder in decoders.items():
        logger.info("%s: %.1f M parameters, %d layers", role, models.count_params(decoder) / 1e6, decoder.num_layers)
    pair = Pair(
        student=decoders["student"],
        teacher=decoders.get("teacher"),
        vocab_size=vocab_size,
        dtype=config.models.compute_dtype,
        remat=config.models.remat,
    )
    return pair, tokenizer, stops


def tokenize(
    config: data.DataConfig,
    records: list[data.Record],
    tokenizer: Any,
    stops: tuple[int, ...],
    *,
    prompts_alone: bool = False,
) -> data.Rows:
    """Rows of `records`, as [data] has them made."""
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
    )


def tell_rows(rows: data.Rows, name: str) -> None:
    """One line in the log about rows, and a warning where most were dropped."""
    logger.info("%s: %s", name, rows.summary())
    if rows.dropped > rows.read // 2:
        logger.warning("%s: more than half were dropped; raise data.max_length", name)


def select_records(config: RunConfig, records: list[data.Record]) -> list[data.Record]:
    """The training records that serve the method; warns where they have what it does not look at.

    Raises:
        InputError: Records lack what the method asks for.
    """
    method = config.method
    if "response" in method.reads and not any(record.response for record in records):
        raise InputError(
            f"{config.data.train} has prompts alone, and method {method.name}, as it is set, learns from stored "
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


def _select_common(first: data.Rows, second: data.Rows) -> tuple[data.Rows, data.Rows]:
    """The rows of the records that both have kept."""
    common = set(first.sources) & set(second.sources)
    if not common:
        raise InputError("no record has room for both of its responses; raise data.max_length")
    if len(common) < max(len(first), len(second)):
        logger.info("%d records have room for both of their responses", len(common))
    return first.select(common), second.select(common)


def _asks_something(record: data.Record) -> bool:
    return any((message.get("content") or "").strip() for message in record.prompt)


def check_written(pair: Pair, new: int, length: int, rows: data.Rows) -> None:
    """Raises InputError where text that is to be written is longer than a model was made for."""
    prompt = max(rows.prompt_lengths)
    for role, decoder in (("teacher", pair.teacher), ("student", pair.student)):
        if decoder is not None and min(prompt + new, length) > decoder.max_positions:
            room = decoder.max_positions - prompt
            raise InputError(
                f"an answer of method.sampling.max_new_tokens = {new} tokens to the longest prompt, of {prompt}, would "
                f"end past the {decoder.max_positions} positions that the {role} was made for (max_position_embeddings "
                f"in its config.json); lower data.max_length to {decoder.max_positions}, where answers are cut"
                f"{f', or max_new_tokens to {room}' if room > 0 else ''}"
            )


def check_room(new: int, length: int) -> None:
    """Raises InputError where no row has room for what is to be written."""
    if new >= length:
        raise InputError(
            f"method.sampling.max_new_tokens = {new} leaves no room for a prompt in data.max_length = {length}; lower "
            "the first or raise the second"
        )


def tell_short_answers(new: int, length: int, rows: data.Rows) -> None:
    """Says how many prompts leave less room than an answer may take."""
    short = sum(prompt + new > length for prompt in rows.prompt_lengths)
    if short:
        logger.warning(
            "%d of %d prompts leave less than %d of %d tokens: their answers are cut there; raise data.max_length",
            short,
            len(rows),
            new,
            length,
        )


def check_context(pair: Pair, rows: data.Rows, name: str) -> None:
    """Raises InputError where rows are longer than a model was made for, or hold an id that one does not know.

    Nobody trained it past that many positions; and a padding token that one tokenizer alone has may stand in a text.
    """
    largest = rows.largest_id
    if largest >= pair.vocab_size:
        raise InputError(
            f"{name} hold the token id {largest}, which teacher and student do not share ({pair.vocab_size} ids); "
            "remove the padding token from the texts"
        )
    longest = int(rows.lengths.max())
    for role, decoder in (("teacher", pair.teacher), ("student", pair.student)):
        if decoder is not None and longest > decoder.max_positions:
            raise InputError(
                f"{name} have up to {longest} tokens, and the {role} was made for {decoder.max_positions} positions "
                f"(max_position_embeddings in its config.json); lower data.max_length to {decoder.max_positions}"
            )


def read_held_out(config: data.DataConfig) -> list[data.Record]:
    """The held-out records, and nothing else where they have a file of their own."""
    if config.held_out is None:
        return read_split(config)[1]
    held_out = _read(config, config.held_out, config.held_out_split)[: config.held_out_rows]
    if alone := _first_alone(config, held_out):
        raise InputError(f"{alone} has no response, and a student is measured on the held-out responses; add them")
    return held_out


def read_split(config: data.DataConfig) -> tuple[list[data.Record], list[data.Record]]:
    """Training and held-out records. Without held-out data of its own, the last rows are held out of training."""
    records = _read(config, config.train, config.train_split)
    if config.held_out is not None:
        held_out = read_held_out(config)
        _warn_of_known(records, held_out)
        return records, held_out
    if len(records) <= config.held_out_rows:
        raise InputError(
            f"{config.train} has {len(records)} rows, and data.held_out_rows would hold out {config.held_out_rows} of "
            "them; lower it, or name data.held_out"
        )
    train, held_out = records[: -config.held_out_rows], records[-config.held_out_rows :]
    if alone := _first_alone(config, held_out):
        raise InputError(
            f"{alone} has no response, and a student is measured on the responses of the last {len(held_out)} rows of "
            f"{config.train}; name data.held_out, rows with responses"
        )
    _warn_of_known(train, held_out)
    return train, held_out


def _read(config: data.DataConfig, path: str, split: str) -> list[data.Record]:
    return data.read_records(path, config.columns, split, skip_bad_rows=config.skip_bad_rows)


def _first_alone(config: data.DataConfig, records: list[data.Record]) -> str | None:
    """Where the first prompt without a response stands, unless such rows can be skipped."""
    alone = [record.source for record in records if not record.response]
    skipped = config.skip_bad_rows and len(alone) < len(records)
    return alone[0] if alone and not skipped else None


def _warn_of_known(train: list[data.Record], held_out: list[data.Record]) -> None:
    learned = {repr((record.prompt, record.response)) for record in train}
    known = sum(repr((record.prompt, record.response)) in learned for record in held_out)
    if known:
        logger.warning("%d of %d held-out rows are training rows too: they show memory", known, len(held_out))
