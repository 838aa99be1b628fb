"""What methods are built from."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jax.sharding import Mesh

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax.distill import Balance, Objective, ObjectiveConfig, TwoStreamObjective
from selecttkd_jax.generation import KeepRule, Sampling
from selecttkd_jax.selection import SelectionConfig
from selecttkd_jax.selection._controls import surveyed
from selecttkd_jax.sources import (
    AdaptiveAlpha,
    BesideCorpus,
    EpochPairs,
    MakeWriter,
    OnPolicy,
    Pairs,
    Role,
    RolloutFiles,
    unwritten,
)
from selecttkd_jax.training import (
    Frozen,
    Method,
    OneStream,
    Pair,
    RankedStream,
    Source,
    SurveyedStream,
    SurveyedWithPretraining,
    Surveyor,
    TwoStreams,
    WithPretraining,
)

logger = logging.getLogger(__name__)

# Rows of an epoch that are written at once: enough to fill slots anew, and not too much to lose.
_ROUND_ROWS = 512


@dataclass(frozen=True)
class Parts:
    """What a run has ready for its method.

    Attributes:
        pair: The models that see a batch.
        objective: What methods share.
        stored: The run's training rows.
        mesh: Over which the rows of a batch are spread.
        memory_budget: Bytes for the logits that exist at once; None leaves the choice to the fused head.
        steps: Steps of the whole run, over which schedules extend.
        write: Lets the student, the teacher or both write (`sources.Writers`).
        frozen: The parameters that are not trained; none where a step is only compiled.
        stored_student: The student's stored responses to the same prompts, where the method reads them.
        corpus: Rows of the method's corpus; None: it has none.
        packed: Whether several rows share a sequence where they are learned from.
        selection: A budget of tokens, or None.
        rollouts: Where text that outlives its step is kept; None where a step is only compiled.
    """

    pair: Pair
    objective: ObjectiveConfig
    stored: Source
    mesh: Mesh
    memory_budget: int | None = None
    steps: int = 1
    write: MakeWriter = unwritten
    frozen: Frozen = Frozen()
    rollouts: RolloutFiles | None = None
    stored_student: Source | None = None
    corpus: Source | None = None
    packed: bool = False
    selection: SelectionConfig | None = None

    def on_policy(
        self,
        who: Role | KeepRule,
        sampling: Sampling,
        rollout_steps: int,
        share: Callable[[int], float] = lambda step: 1.0,
        *,
        by_row: bool = False,
        keep_labels: bool = True,
    ) -> OnPolicy:
        """The stored rows, a share of them written anew by one of the two models, or by both (`sources.OnPolicy`)."""
        return OnPolicy(
            self.stored,
            self.write(who, sampling),
            share,
            self.mesh,
            by_row=by_row,
            round_steps=rollout_steps,
            keep_labels=keep_labels,
        )

    def pairs(self, sampling: Sampling, *, teacher_writes: bool, epoch_steps: int | None = None) -> Source:
        """Both models' answers to the stored prompts: at each step, or for `epoch_steps` of them at once, on disk.

        Args:
            sampling: How both write.
            teacher_writes: Whether the teacher answers; otherwise the stored responses are its answers.
            epoch_steps: Steps of an epoch; None lets the student write at each step.
        """
        student = self.write("student", sampling)
        teacher = self.write("teacher", sampling) if teacher_writes else None
        if epoch_steps is None:
            return Pairs(self.stored, student, teacher)
        return EpochPairs(
            self.stored,
            student,
            teacher,
            self.mesh,
            self.rollouts,
            sampling=sampling,
            epoch_steps=epoch_steps,
            round_steps=-(-_ROUND_ROWS // self.stored.shapes.input_ids.shape[0]),
            steps=self.steps,
        )

    def adapt_alpha(self, pairs: Source, *, window: int, by_row: bool) -> AdaptiveAlpha:
        """Pairs of responses, each with a skew that follows from the models' gap on it (`sources.AdaptiveAlpha`)."""
        return AdaptiveAlpha(
            pairs,
            self.pair,
            self.frozen,
            self.mesh,
            base=0.1 if self.objective.alpha is None else self.objective.alpha,
            window=window,
            by_row=by_row,
            memory_budget=self.memory_budget,
        )

    def one_stream(self, objective: Objective) -> OneStream:
        """The loss of an objective on one stream of responses, with what [objective] says of how it is computed."""
        if self.selection is not None:
            kind = partial(RankedStream, budget=self.selection.build())
        else:
            kind = OneStream if surveyed(objective.verifier) is None else SurveyedStream
        return kind(
            pair=self.pair,
            objective=objective,
            expected=self.objective.expects,
            memory_budget=self.memory_budget,
            skip_rejected=self.objective.skip_rejected,
            packed=self.packed,
            schedules=self.objective.build_schedules(self.steps),
        )

    def two_streams(self, objective: TwoStreamObjective, balance: Balance) -> TwoStreams:
        """The same for an objective on the teacher's responses and another on the student's."""
        return TwoStreams(
            pair=self.pair,
            objective=objective,
            balance=balance,
            expected=self.objective.expects,
            memory_budget=self.memory_budget,
            skip_rejected=self.objective.skip_rejected,
            packed=self.packed,
            schedules=self.objective.build_schedules(self.steps),
        )

    def with_pretraining(self, method: Method, coefficient: float, *, label_share: float) -> Method:
        """The same method with a language model's loss beside its own, on the corpus or else on the stored responses.

        Args:
            method: One whose loss is divided as [objective] says.
            coefficient: What it counts for; 0 leaves the method as it is.
            label_share: Of cross-entropy in it; the rest is the teacher's soft cross-entropy.
        """
        if coefficient == 0:
            return method
        kind = SurveyedWithPretraining if isinstance(method.loss, Surveyor) else WithPretraining
        loss = kind(
            rows=method.loss,
            pair=self.pair,
            normalizer=self.objective.normalizer,
            coefficient=coefficient,
            label_share=label_share,
            memory_budget=self.memory_budget,
            packed=self.packed,
        )
        return Method(source=BesideCorpus(method.source, self.corpus or self.stored), loss=loss)


def check_pretraining(coefficient: float, corpus: str | None) -> None:
    """Raises InputError where the options of a method's pre-training term do not go together."""
    check_at_least("method.pretraining", coefficient, 0)
    if corpus is not None and coefficient == 0:
        raise InputError("method.corpus is pre-trained on where method.pretraining is above 0, and it is 0")


def warn_of_old_text(divergence: str, age: int) -> None:
    """Says so where a reverse divergence would learn from text that weights of more than one step ago wrote."""
    if "reverse" in divergence and age > 1:
        logger.warning(
            "%s expects text of the student as it is, and this text is up to %d steps old: write more often, or take a "
            "forward divergence",
            divergence,
            age,
        )
