"""Text of the student from a server, to which its weights are handed over every few steps."""

import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selecttkd_jax._array_types import Key, Params
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._outside_files import first_line, shorten
from selecttkd_jax.data import Batch, Record
from selecttkd_jax.generation import KeepRule, Sampling, Server, ask_server
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share
from selecttkd_jax.sources._engine_files import EngineFiles, Question, Served
from selecttkd_jax.sources._writer import MakeWriter, Rewrite, Role, make_row_keys, replace_responses, split_prompts
from selecttkd_jax.training import Report, TrainState

logger = logging.getLogger(__name__)

_DIRECTORY = "{directory}"


@dataclass(frozen=True)
class EngineConfig(Server):
    """A server of OpenAI's interface that writes the student's text, with weights that it is handed during training."""

    every: int = 1
    """Steps between two hand-overs: what is learned from was written by weights up to every - 1 steps old."""
    reload: tuple[str, ...] = ()
    """Command that makes the server take the weights of {directory} and returns when it answers with them. Left out:
    model holds {directory}, for a server that loads what a request names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("engine.every", self.every, 1)
        if not any(_DIRECTORY in word for word in (self.model, *self.reload)):
            raise InputError(
                "nothing tells the server where the student's new weights are: set engine.reload to a command with "
                f"{_DIRECTORY} in it, or put {_DIRECTORY} into engine.model"
            )

    def server(self, directory: Path) -> Server:
        """Whom to ask for text by the weights of a directory."""
        said = {entry.name: getattr(self, entry.name) for entry in fields(Server)}
        return Server(**said | {"model": self.model.replace(_DIRECTORY, str(directory))})

    def hand_over(self, directory: Path) -> None:
        """Lets the server load a directory.

        Raises:
            InputError: The command fails.
        """
        if not self.reload:
            return
        command = [word.replace(_DIRECTORY, str(directory)) for word in self.reload]
        try:
            done = subprocess.run(command, capture_output=True, timeout=self.timeout, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"engine.reload failed: {first_line(error)}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
            reason = f": {self.without_key(said[-1])[:300]}" if said else ""
            raise InputError(f"engine.reload ({command[0]}) ended with exit code {done.returncode}{reason}")


class EngineWriters:
    """Writers whose student is a server; the teacher's text comes from others.

    Every `engine.every` steps, the first time that text is asked for, the student is written to
    `DIRECTORY/step-N` (N finished steps) and the server made to load it. Prompts go out as text and answers come back
    as text: they are tokenised again, which need not give the tokens that were sampled, and end with a stop token
    where the server says that they ended by themselves. What came is kept (`EngineFiles`) and read by a run that
    takes the step again; such a run hands over anew before it asks for more, unless it read which weights are next.

    Args:
        others: Makes the teacher's writers.
        engine: Whom to ask, and how often it gets new weights.
        save: Writes the student as a model directory; called on every process.
        directory: Where such directories go. The newest two stay.
        files: Where the text is kept.
        mesh: Over which the rows of a batch are spread.
        tokenizer: Of the student.
        stop_ids: Where a response ends.
        end_id: The stop id that an answer gets.
    """

    def __init__(
        self,
        others: MakeWriter,
        engine: EngineConfig,
        save: Callable[[Params, Path], None],
        directory: Path,
        files: EngineFiles,
        mesh: Mesh,
        tokenizer: Any,
        stop_ids: Sequence[int],
        end_id: int,
    ):
        self._others = others
        self._engine = engine
        self._save = save
        self._directory = directory
        self._files = files
        self._mesh = mesh
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._end_id = end_id
        self._handed: int | None = None  # finished steps of the weights that write
        self._loaded: int | None = None  # of those that the server was told of
        self._ages: list[int] = []
        self._warned = False

    def __call__(self, who: Role | KeepRule, sampling: Sampling) -> Rewrite:
        """A writer of one of the two models.

        Raises:
            InputError: Both are to write together: a server has one of them.
        """
        if not isinstance(who, str):
            raise InputError("a server cannot write together with the teacher, token by token: leave out [engine]")
        return partial(self._rewrite, sampling) if who == "student" else self._others(who, sampling)

    def report(self, report: Report) -> Report:
        """The same with `rollouts/staleness` where the student wrote since the last one.

        That is the steps from the hand-over of the weights to the writing, a mean over its responses.
        """
        ages, self._ages = self._ages, []
        numbers = {"rollouts/staleness": float(np.mean(ages))} if ages else {}
        return report._replace(numbers=report.numbers | numbers)

    def _rewrite(self, sampling: Sampling, state: TrainState, batch: Batch, chosen: np.ndarray, key: Key) -> Batch:
        step, rows = int(state.step), len(chosen)
        whole = jax.tree.map(gather_to_host, place_batch(self._mesh, batch, rows))
        draws = np.asarray(jax.device_get(jax.random.key_data(key if key.ndim else make_row_keys(key, rows))))
        prompts = split_prompts(whole)
        asked = {
            int(row): Question(self._as_text(prompts[row]), draws[row].tobytes().hex())
            for row in np.flatnonzero(chosen)
        }
        answers = self._answer(state, list(asked.values()), sampling)
        tokens = np.zeros((rows, sampling.max_new_tokens), np.int32)
        lengths, ages = np.zeros((2, rows), np.int32)
        for row, question in asked.items():
            if question in answers:
                ids = self._tokenize(answers[question])[: sampling.max_new_tokens]
                tokens[row, : len(ids)], lengths[row], ages[row] = ids, len(ids), step - answers[question].after
        tokens, lengths, ages = _share((tokens, lengths, ages))
        self._ages += ages[chosen].tolist()
        part, parts = process_share(self._mesh, rows)
        own = slice(part * rows // parts, (part + 1) * rows // parts)
        texts = [ids[:length] for ids, length in zip(tokens[own], lengths[own], strict=True)]
        return replace_responses(batch, split_prompts(batch), chosen[own], texts)

    def _answer(self, state: TrainState, asked: Sequence[Question], sampling: Sampling) -> dict[Question, Served]:
        """What is kept, and the server's answers to the rest; the first process has them, and the others none."""
        step, first = int(state.step), jax.process_index() == 0
        kept = self._files.read(step) if first else {}
        answers = {question: kept[question] for question in asked if question in kept}
        # All go by what the first finds on disk.
        after = max((answer.after for answer in answers.values()), default=-1)
        missing, after = _share(np.array([len(asked) - len(answers), after], np.int32)).tolist()
        self._handed = after if after >= 0 else self._handed
        if not missing:
            return answers
        self._export(state)
        failure: Exception | None = None
        if first:
            try:
                self._load()
                answers |= self._ask(step, [question for question in asked if question not in answers], sampling)
            except Exception as error:
                failure = error
        if _share(np.int32(failure is not None)):
            raise failure or InputError("process 0 got no text from the server; its own message says why")
        return answers

    def _path(self, step: int) -> Path:
        return self._directory.absolute() / f"step-{step}"

    def _export(self, state: TrainState) -> None:
        """Writes the student where its weights are due, or those that are to write are not there."""
        step, every, handed = int(state.step), self._engine.every, self._handed
        there = handed is not None and step // every == handed // every
        if not _share(np.int32(there and self._path(handed or 0).is_dir())):
            self._save(state.params, self._path(step))
            self._handed = step

    def _load(self) -> None:
        """Makes the server take the weights that are to write, unless it has them."""
        if self._loaded == self._handed or self._handed is None:
            return
        logger.info("the server is given the weights after %d steps", self._handed)
        self._engine.hand_over(self._path(self._handed))
        newest = {self._path(step) for step in (self._handed, self._loaded) if step is not None}
        for old in set(self._directory.absolute().glob("step-*")) - newest:
            shutil.rmtree(old)
        self._loaded = self._handed

    def _ask(self, step: int, asked: Sequence[Question], sampling: Sampling) -> dict[Question, Served]:
        """The server's answers, each on disk as soon as it is there."""
        assert self._handed is not None
        # By the row's own key, from which the request's seed comes: it does not depend on who is asked beside it.
        questions = {int(question.draw, 16): question for question in asked}
        records = {
            number: Record(
                ({"role": "user", "content": question.prompt},),
                source=f"a prompt of step {step + 1} ({shorten(question.prompt)})",
            )
            for number, question in questions.items()
        }
        server, found = self._engine.server(self._path(self._handed)), {}
        for number, answer in ask_server(server, records, sampling, template="plain", strip=False):
            found[questions[number]] = Served(answer.text, answer.cut, self._handed)
            self._files.append(step, questions[number], found[questions[number]])
        return found

    def _as_text(self, prompt: np.ndarray) -> str:
        """Text that a server, whose tokenizer puts its own begin token in front, reads as this prompt."""
        exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text, first = (self._tokenizer.decode(ids, **exact) for ids in (prompt, prompt[:1]))
        for candidate in (text, text.removeprefix(first)):
            if self._tokenizer(candidate, verbose=False)["input_ids"] == prompt.tolist():
                return candidate
        if not self._warned:
            logger.warning("the tokenizer reads the text of a prompt as other tokens than the prompt's: %r", text[:200])
            self._warned = True
        return text

    def _tokenize(self, answer: Served) -> list[int]:
        """An answer's tokens, up to the first stop token, which is put behind one that was not cut."""
        ids = self._tokenizer(answer.text, add_special_tokens=False, verbose=False)["input_ids"]
        stop = next((place for place, index in enumerate(ids) if index in self._stop_ids), None)
        if stop is not None:
            return ids[: stop + 1]
        return ids if answer.cut else [*ids, self._end_id]


def _share(values: Any) -> Any:
    """The first process's arrays, on all of them."""
    if jax.process_count() == 1:
        return values
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(values))
