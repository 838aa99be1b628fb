"""Everything that can be wrong is found before a model is loaded: configs, weights' headers, tokenizers, rows."""

import logging
from dataclasses import dataclass
from typing import Any

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import log_shared_width
from selecttkd_jax.runs._config import RunConfig
from selecttkd_jax.runs._rows import CORPUS, HELD_OUT, STUDENT, TRAIN, load_rows, tell_rows
from selecttkd_jax.training import Pair

logger = logging.getLogger(__name__)


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
    rows = load_rows(config, tokenizer, stops)
    for name, found in rows.items():
        tell_rows(found, name)
    for line in rows[TRAIN].describe_parts():
        logger.info("training rows of %s", line)
    if known := rows[TRAIN].count_known(rows[HELD_OUT]):
        logger.warning("%d of %d held-out rows are training rows too: they show memory", known, len(rows[HELD_OUT]))
    prepared = Prepared(
        pair=pair,
        tokenizer=tokenizer,
        stop_ids=stops,
        train_rows=rows[TRAIN],
        held_out_rows=rows[HELD_OUT],
        student_rows=rows.get(STUDENT),
        corpus_rows=rows.get(CORPUS),
    )
    for rows in filter(None, (prepared.train_rows, prepared.student_rows)):
        check_context(pair, rows, "training rows")
    if prepared.corpus_rows is not None:
        check_context(pair, prepared.corpus_rows, CORPUS)
    check_context(pair, prepared.held_out_rows, "held-out rows")
    if config.method.writes and config.method.sampling is not None:
        check_room(config.method.sampling.max_new_tokens, config.data.max_length)
        tell_short_answers(config.method.sampling.max_new_tokens, config.data.max_length, prepared.train_rows)
        check_written(pair, config.method.sampling.max_new_tokens, config.data.max_length, prepared.train_rows)
    return prepared


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
