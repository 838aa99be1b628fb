"""What the loop asks of a method: a loss and a source of batches. Neither knows the other, nor how a run is started."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from selecttkd_jax._array_types import Key, Params, Scalar
from selecttkd_jax.training._state import TrainState

Batch = Any
"""A pytree of arrays `[B, ...]`; which one is between a method's source and its loss."""


class Sums(Protocol):
    """A pytree of sums over rows, such as `distill.LossSums`: those of two batches, added up, are those of both."""

    @property
    def loss(self) -> Scalar:
        """Numerator of what is minimised; carries the gradient."""
        ...

    @property
    def count(self) -> Scalar:
        """Its divisor, a constant."""
        ...

    def means(self) -> dict[str, float]:
        """The numbers of a step's row in the metrics, with `loss` and `tokens` among them, of sums on the host."""
        ...


class Loss(Protocol):
    """What a step minimises: hashable, so that two equal ones are one compiled program."""

    def draw(self, key: Key, batch: Batch) -> Any:
        """The random numbers of a step, a pytree of arrays `[B, ...]`, or None.

        Drawn for the whole batch before it is cut, so the same key gives the same numbers for every number of
        micro-batches.
        """
        ...

    def __call__(self, params: Params, frozen: Any, batch: Batch, draws: Any, step: Scalar) -> Sums:
        """Sums over the rows of a batch, or of a part of it.

        Args:
            params: What is trained.
            frozen: What is not: a `Frozen`.
            batch: As the method's source gave it.
            draws: Its part of what `draw` gave.
            step: Finished steps, int32 scalar: for schedules within the loss.
        """
        ...


@runtime_checkable
class Surveyor(Protocol):
    """A loss that looks at the whole batch before it learns from any of it.

    A budget or a rate is one of the whole batch, whatever the number of micro-batches and devices: `survey` sees each
    micro-batch, `decide` all of what it found.
    """

    def survey(self, params: Params, frozen: Any, batch: Batch, step: Scalar) -> Any:
        """What is to be known of each row of a part, a pytree of arrays `[rows, ...]`; nothing is differentiated."""
        ...

    def decide(self, found: Any, batch: Batch, draws: Any, step: Scalar) -> Any:
        """The step's draws, in the light of what was found in the whole batch: again a pytree of arrays `[B, ...]`."""
        ...


class Source(Protocol):
    """Where batches come from. What it draws comes from `state.key`, the stream's name and the step (`stream_key`)."""

    @property
    def shapes(self) -> Batch:
        """A whole batch as `jax.ShapeDtypeStruct`s: what a step can be compiled for before there are any rows."""
        ...

    def next(self, state: TrainState) -> Batch:
        """The next batch, NumPy arrays: this process's share of the rows.

        Args:
            state: As it is when the batch is asked for; a source that lets the student write reads its parameters.
        """
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, as plain JSON data, the same on every process."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A source that adapts to how the student does."""

    def learn(self, row: dict[str, float]) -> None:
        """Told the row of each evaluation; that before the first step has nothing else."""
        ...


@runtime_checkable
class Describer(Protocol):
    """A source that can say which of its rows a step takes, for messages."""

    def describe(self, step: int) -> str:
        """What the batch of step `step`, counted from 1, is made of."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """A loss that can say more of a batch on which it was not finite."""

    def explain(self, frozen: Any, batch: Batch) -> str:
        """The cause in a sentence, or nothing where it is not known."""
        ...


class Report(NamedTuple):
    """What is known of a batch that a model wrote.

    Attributes:
        numbers: For the row of the step that takes it; none where all of it was stored.
        seconds: How long the writing took, which is no time of learning.
    """

    numbers: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Method:
    """A method of distillation, ready to run.

    Attributes:
        source: Where its batches come from.
        loss: What it minimises on them.
    """

    source: Source
    loss: Loss


class Evaluator(Protocol):
    """Numbers of a student that are not those of its training batches.

    One that needs nothing but the parameters may say so, `repeatable = True`: then a run that is told to end leaves it
    to the run that resumes.
    """

    @property
    def name(self) -> str:
        """Stands before each of its numbers in a row: `name/number`."""
        ...

    @property
    def every(self) -> int:
        """Steps between two evaluations; there is one before the first step and one after the last, too."""
        ...

    def __call__(self, params: Params) -> dict[str, float]:
        """Evaluates what is trained; nothing where there is nothing to say at this step."""
        ...
