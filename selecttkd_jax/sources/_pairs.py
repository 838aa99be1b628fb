"""The teacher's and the student's answers to the same prompts."""

from typing import Any

import numpy as np

from selecttkd_jax.data import Responses
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.sources._writer import Rewrite
from selecttkd_jax.training import Source, TrainState, stream_key


class Pairs(OfStored):
    """Stored prompts, answered at each step by the student and, unless its answers are the stored ones, by the teacher.

    What is written comes from `state.key` and the step, so the position is that of the stored rows.

    Args:
        stored: Whose prompts are answered.
        student: Lets the live student write.
        teacher: Lets the teacher write; None takes the stored responses as the teacher's.
    """

    def __init__(self, stored: Source, student: Rewrite, teacher: Rewrite | None):
        super().__init__(stored)
        self._student = student
        self._teacher = teacher
        self.shapes = Responses(teacher=stored.shapes, student=stored.shapes)

    def next(self, state: TrainState) -> Responses:
        """Both models' answers to the next stored prompts."""
        step, batch = int(state.step), self._stored.next(state)
        every = np.ones(self.shapes.teacher.input_ids.shape[0], bool)
        on_student = self._student(state, batch, every, stream_key(state.key, "rollouts", step))
        if self._teacher is not None:
            batch = self._teacher(state, batch, every, stream_key(state.key, "teacher rollouts", step))
        return Responses(teacher=batch, student=on_student)


class StoredPairs(OfStored):
    """Both answers as they are on disk.

    Args:
        teacher: The teacher's.
        student: The student's, in the same order; None where a step is only compiled.
    """

    def __init__(self, teacher: Source, student: Source | None):
        super().__init__(teacher)
        self._student = teacher if student is None else student
        self.shapes = Responses(teacher=teacher.shapes, student=self._student.shapes)

    def next(self, state: TrainState) -> Responses:
        """The answers to the next prompts."""
        return Responses(teacher=self._stored.next(state), student=self._student.next(state))

    def get_state(self) -> dict[str, Any]:
        """The position in either."""
        return {"teacher": super().get_state(), "student": self._student.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        super().set_state(state["teacher"])
        self._student.set_state(state["student"])
