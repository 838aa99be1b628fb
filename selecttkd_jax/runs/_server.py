"""Answers to prompts from a server."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax import data
from selecttkd_jax._errors import check_one_of
from selecttkd_jax.generation import Sampling, Server, ask_server
from selecttkd_jax.progress import progress_bar

logger = logging.getLogger(__name__)


def generate_from_server(
    server: Server,
    records: Sequence[data.Record],
    sampling: Sampling,
    output: Path | None = None,
    *,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    template: str = "chat",
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lets the model behind a server answer the prompt of each record; returns the texts in the records' order.

    Args:
        server: Whom to ask.
        records: Whose prompts are answered.
        sampling: How.
        output: File to which answers are appended as they come (`data.AnswerFile`); one of an interrupted call with
            the same prompts and settings is continued. None keeps them in memory.
        seed: Of the draws, each request's from its number.
        stop: Texts that end an answer.
        template: `"chat"`, the server's own template, or `"plain"`, the prompt's bare text.
        template_kwargs: Options of the chat template.

    Raises:
        InputError: The server refuses a prompt or does not answer it, or the file is another call's. What was answered
            before stays in the file.
    """
    check_one_of("template", template, ("chat", "plain"))
    settings = {
        "model": server.model,
        "sampling": dataclasses.asdict(sampling),
        "seed": seed,
        "stop": list(stop),
        "template": template,
        "template_kwargs": dict(template_kwargs or {}),
    }
    file = None if output is None else data.AnswerFile.of_records(output, records, settings)
    waiting = range(len(records)) if file is None else file.waiting
    if file is not None and len(file):
        logger.info("%s has %d of %d answers already", file.path, len(file), len(records))
    texts: dict[int, str] = {}
    with progress_bar("generating") as advance:
        answers = ask_server(
            server,
            {index: records[index] for index in waiting},
            sampling,
            seed=seed,
            stop=stop,
            template=template,
            template_kwargs=template_kwargs,
        )
        for index, answer in answers:
            texts[index] = answer.text
            if file is not None:
                file.append(index, answer.text, cut=answer.cut)
            advance(len(records) - len(waiting) + len(texts), len(records))
    if file is None:
        return [texts[index] for index in range(len(records))]
    counts = file.finish()
    about = (file.path, len(file), counts["length"], counts["empty"])
    logger.info("%s: %d answers, %d cut at their limit, %d empty", *about)
    return [row["completion"] for row in file.rows]
