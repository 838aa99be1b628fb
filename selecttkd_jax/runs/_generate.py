"""A model's answers to prompts."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selecttkd_jax import data, generation, models
from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError, check_one_of
from selecttkd_jax.compilation import keep_programs
from selecttkd_jax.generation import Sampling
from selecttkd_jax.progress import progress_bar
from selecttkd_jax.runs._identity import checksum
from selecttkd_jax.sharding import PRESETS, MeshConfig, check_agreement, make_mesh

logger = logging.getLogger(__name__)


def generate(
    model: str,
    records: Sequence[data.Record],
    sampling: Sampling,
    output: Path | None = None,
    *,
    slots: int | None = None,
    seed: int = 0,
    template: str = "chat",
    template_kwargs: Mapping[str, Any] | None = None,
    date: str = data.RUN_DATE,
    dtype: str | None = None,
    mesh: MeshConfig | None = None,
) -> list[str]:
    """Lets `model` answer the prompt of each record; returns the texts in the records' order.

    Where several processes share the mesh, each of them calls this. They write every answer together; the first one
    alone reads and writes the file, and has the texts: the others get none.

    Args:
        model: A directory or hub name.
        records: Whose prompts are answered.
        sampling: How.
        output: File to which answers are appended as they come (`data.AnswerFile`); one of an interrupted call with
            the same prompts and settings is continued. None keeps them in memory.
        slots: Answers written at a time; they change no answer. None: as many as the memory has room for.
        seed: Of the draws.
        template: `"chat"`, the model's own template, or `"plain"`, the prompt as it is.
        template_kwargs: Options of the chat template.
        date: What a chat template that writes today's date is told.
        dtype: In which the model computes; None takes bfloat16, and float32 on a CPU.
        mesh: The devices: rows over `data` and `fsdp`, and the weights over `tensor`. None: one.

    Raises:
        InputError: The model, its tokenizer or a prompt is not usable, or the file is another call's.
    """
    check_one_of("template", template, ("chat", "plain"))
    decoder, _ = models.read_config(model)
    models.check_weights(model)
    tokenizer = data.load_tokenizer(model)
    prompts = [
        data.render_prompt(record, tokenizer, template, template_kwargs=template_kwargs, date=date)
        for record in records
    ]
    _check_context(records, prompts, sampling, decoder.max_positions)
    for record, prompt in zip(records, prompts, strict=True):
        if max(prompt, default=0) >= decoder.vocab_size:
            raise InputError(
                f"{record.source}: the prompt holds the token id {max(prompt)}, and the model has {decoder.vocab_size} "
                "embeddings: its tokenizer is larger than the model"
            )
    stop_ids = data.stop_ids(tokenizer, model)
    beyond = [stop_id for stop_id in stop_ids if stop_id >= decoder.vocab_size]
    if beyond:
        raise InputError(
            f"{model} ends its turns with the token ids {beyond}, which it cannot write: it has {decoder.vocab_size} "
            "embeddings; mend eos_token_id in its generation_config.json, or its tokenizer"
        )
    keep_programs()
    devices = make_mesh(mesh or MeshConfig())
    compute = generation.default_dtype(devices) if dtype is None else jnp.dtype(dtype)
    settings = {
        "model": model,
        "weights": models.fingerprint_files(model),
        "sampling": dataclasses.asdict(sampling),
        "seed": seed,
        "template": template,
        "template_kwargs": dict(template_kwargs or {}),
        "date": date,
        "dtype": compute.name,
    }
    check_agreement({"the prompts": checksum(prompts), "the model and the options": checksum([settings, slots])})
    first = jax.process_index() == 0
    file = data.AnswerFile.of_records(output, records, settings) if output is not None and first else None
    answered = _share_answered(len(records), file)
    if file is not None and answered:
        logger.info("%s has %d of %d answers already", file.path, len(answered), len(records))
    texts: dict[int, str] = {}
    if len(answered) < len(records):
        with jax.set_mesh(devices), progress_bar("generating") as advance:
            params = _load(model, devices, compute)
            if slots is None:
                longest = max(map(len, prompts))
                length = generation.cache_length(generation.Decoder(decoder, sampling), longest)
                slots = generation.fit_slots(devices, [decoder], length, compute, len(prompts))

            def take(index: int, tokens: list[int]) -> None:
                if not first:
                    return
                texts[index] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                if file is not None:
                    file.append(index, texts[index], cut=tokens[-1] not in stop_ids)
                advance(len(answered) + len(texts), len(records))

            generation.generate(
                decoder,
                params,
                prompts,
                sampling=sampling,
                stop_ids=stop_ids,
                key=jax.random.key(seed),
                slots=slots,
                vocab_size=data.tokenizer_size(tokenizer),
                answered=answered,
                on_answer=take,
            )
    if file is None:
        return [texts[index] for index in sorted(texts)]
    counts = file.finish()
    about = (file.path, len(file), counts["length"], counts["empty"])
    logger.info("%s: %d answers, %d cut at their limit, %d empty", *about)
    return [row["completion"] for row in file.rows]


def _share_answered(prompts: int, file: data.AnswerFile | None) -> set[int]:
    """The prompts that the first process's file has answers to, on every process."""
    there = np.zeros(prompts, bool)
    if file is not None:
        there[:] = True
        there[file.waiting] = False
    if jax.process_count() > 1:
        there = np.asarray(multihost_utils.broadcast_one_to_all(there))
    return set(np.flatnonzero(there).tolist())


def _load(model: str, mesh: Mesh, dtype: jnp.dtype) -> Params:
    """The weights, read onto the devices that decode with them."""
    decoder, _ = models.read_config(model)
    shardings = models.shardings(decoder, mesh, PRESETS["tensor"])
    params = models.from_pretrained(model, dtype, shardings).params
    return generation.lay_out(mesh, decoder, params, dtype, consume=True)


def _check_context(
    records: Sequence[data.Record], prompts: Sequence[Sequence[int]], sampling: Sampling, limit: int
) -> None:
    """A prompt beyond the positions that a model was made for is refused; an answer that may go beyond is announced."""
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]), default=None)
    if longest is None:
        return
    length = len(prompts[longest])
    made_for = f"the model was made for {limit} positions (max_position_embeddings)"
    if length >= limit:
        raise InputError(f"{records[longest].source}: the prompt has {length} tokens, and {made_for}; shorten it")
    if length + sampling.max_new_tokens > limit:
        logger.warning(
            "the longest prompt has %d tokens and an answer may have %d more, but %s: do not trust "
            "what it writes past them",
            length,
            sampling.max_new_tokens,
            made_for,
        )
