"""The teacher's and the student's answers to the prompts of an epoch, written at its start and kept on disk."""

import json
import logging
import zlib
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, Responses
from selecttkd_jax.generation import Sampling
from selecttkd_jax.sharding import check_agreement
from selecttkd_jax.sources._rollout_files import Pair, RolloutFiles
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.sources._texts import gather_texts, pack_texts, take_share, unpack_texts
from selecttkd_jax.sources._writer import Rewrite, write_together
from selecttkd_jax.training import Source, TrainState, check_leaves, combine_checksums, stream_key

logger = logging.getLogger(__name__)


class EpochPairs(OfStored):
    """`Pairs` whose text is written by the student that an epoch begins with: for all of its steps, before the first.

    The text goes into a file (`RolloutFiles`) step by step and is learned from as it stands there. A run that resumes
    within the epoch reads it again. One that was stopped while it wrote comes to the start of the epoch again, by a
    checkpoint or by taking the steps before it once more; it keeps what these very weights wrote, and writes the rest.

    Args:
        stored: Whose prompts are answered.
        student: Lets the live student write.
        teacher: Lets the teacher write; None takes the stored responses as the teacher's.
        mesh: Over which the rows of a batch are spread.
        files: Where the text goes; None where a step is only compiled.
        sampling: How both write, for the record.
        epoch_steps: Steps of an epoch.
        round_steps: Steps whose text is written at once: what a kill in writing loses, at most.
        steps: Steps of the whole run; the last epoch may be shorter.
    """

    def __init__(
        self,
        stored: Source,
        student: Rewrite,
        teacher: Rewrite | None,
        mesh: Mesh,
        files: RolloutFiles | None,
        *,
        sampling: Sampling,
        epoch_steps: int,
        round_steps: int,
        steps: int,
    ):
        super().__init__(stored)
        self._student = student
        self._teacher = teacher
        self._mesh = mesh
        self._files = files
        self._sampling = sampling
        self._epoch_steps = epoch_steps
        self._round_steps = min(round_steps, epoch_steps)
        self._steps = steps
        self._made_with = 0
        self._left: dict[int, tuple[str, str]] = {}  # by step, the epoch's packed texts that are still to come
        self.shapes = Responses(teacher=stored.shapes, student=stored.shapes)
        self._rows, self._length = stored.shapes.input_ids.shape

    def next(self, state: TrainState) -> Responses:
        """The answers to a step's prompts; those of the whole epoch are written where it begins."""
        step = int(state.step)
        if step not in self._left:
            self._write_epoch(state)
        teacher, student = (unpack_texts(side, self._length) for side in self._left.pop(step))
        return Responses(teacher=take_share(self._mesh, teacher), student=take_share(self._mesh, student))

    def get_state(self) -> dict[str, Any]:
        """The position in the stored rows, and the step within an epoch whose text is on disk."""
        step = min(self._left, default=None)
        return {"stored": super().get_state(), "step": step, "made_with": self._made_with}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state; refuses to where the epoch's file is not the one it was."""
        super().set_state(state["stored"])
        self._left, step = {}, state["step"]
        if step is None:
            return
        self._made_with = state["made_with"]
        found, _ = self._read(step)
        missing = [number for number in self._epoch(step) if number >= step and number not in found]
        if missing:
            path = self._require_files().path(self._number(step))
            raise InputError(
                f"{path}: the answers of step {missing[0] + 1} are not there, or not those of this run, which resumes "
                "within that epoch; put the file back, or move away the checkpoints of the epoch"
            )
        self._left = {number: _pack(found[number]) for number in self._epoch(step) if number >= step}

    def _write_epoch(self, state: TrainState) -> None:
        first, files = int(state.step), self._require_files()
        weights = combine_checksums(check_leaves(state.params))
        settings = {"key": jax.random.key_data(state.key).tolist(), "sampling": asdict(self._sampling)}
        origin = json.dumps([first, weights, files.identity, self._teacher is None, settings], sort_keys=True)
        self._made_with = zlib.crc32(origin.encode())
        found, end = self._read(first)
        logger.info(
            "epoch %d: answering the prompts of steps %d to %d, %d of them on disk already (%s)",
            self._number(first),
            first + 1,
            self._epoch(first).stop,
            len(found),
            files.path(self._number(first)),
        )
        with files.add(self._number(first), end, **settings, made_with=self._made_with) as add_step:
            epoch = self._epoch(first)
            for begin in range(first, epoch.stop, self._round_steps):
                steps = range(begin, min(begin + self._round_steps, epoch.stop))
                batches = [self._stored.next(state) for _ in steps]
                missing = [step not in found for step in steps]
                for step, pairs in zip(steps, self._answer(state, steps, batches, missing), strict=True):
                    if step not in found:
                        add_step(step, pairs)
                    self._left[step] = _pack(found.pop(step, pairs))

    def _answer(self, state: TrainState, steps: range, batches: list[Batch], missing: list[bool]) -> list[list[Pair]]:
        """Both models' answers to the prompts of some steps; of those that are not missing, whatever is stored."""
        # A shorter round is filled up with rows that nobody answers: it has the shapes of all others.
        more = self._round_steps - len(batches)
        chosen = np.repeat(np.array(missing + [False] * more)[:, None], self._rows, axis=1)
        batches = batches + [batches[-1]] * more

        def write(rewrite: Rewrite, stream: str) -> list[Batch]:
            keys = [stream_key(state.key, stream, steps.start + number) for number in range(self._round_steps)]
            return write_together(rewrite, self._mesh, state, batches, chosen, keys)

        student = write(self._student, "rollouts")
        teacher = batches if self._teacher is None else write(self._teacher, "teacher rollouts")
        sides = ([gather_texts(self._mesh, batch, self._rows) for batch in side] for side in (teacher, student))
        return [list(zip(*pair, strict=True)) for pair in zip(*sides, strict=True)][: len(steps)]

    def _read(self, step: int) -> tuple[dict[int, list[Pair]], int]:
        """What is on disk of the epoch of a step, the same on every process."""
        number = self._number(step)
        found, end = self._require_files().read(number, self._made_with, self._rows, self._length)
        check_agreement({f"the answers of epoch {number} on disk ({len(found)} steps here)": len(found)})
        return found, end

    def _number(self, step: int) -> int:
        """The epoch of a step, counted from 1."""
        return step // self._epoch_steps + 1

    def _epoch(self, step: int) -> range:
        """The steps of the epoch that a step belongs to."""
        first = step - step % self._epoch_steps
        return range(first, min(first + self._epoch_steps, self._steps))

    def _require_files(self) -> RolloutFiles:
        assert self._files is not None, "a source without files is only compiled for"
        return self._files


def _pack(pairs: list[Pair]) -> tuple[str, str]:
    teacher, student = zip(*pairs, strict=True)
    return pack_texts(teacher), pack_texts(student)
