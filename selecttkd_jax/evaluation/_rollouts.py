"""What a teacher says of text that a model wrote during training: acceptance by position, rejected stop tokens."""

import logging
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from selecttkd_jax import losses, selection
from selecttkd_jax._array_types import Array, Params
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import map_logits
from selecttkd_jax.selection import Rate
from selecttkd_jax.selection._calling import call_with_labels
from selecttkd_jax.sharding import gather_to_host
from selecttkd_jax.sources import ROLLOUTS, Role, Taken
from selecttkd_jax.training import Frozen, Pair

logger = logging.getLogger(__name__)

_BINS = 10
_SHOWN = 3  # responses that are shown
_REJECTED = 0.5  # acceptance below which a token is marked


class Rollouts:
    """Evaluates a student, and its teacher, on the text that the newest step took, where models write some of it.

    Means over all tokens that it learned from, of the student as it is after the step. The text may be older than the
    step (`rollout_steps`, a buffer) and, under methods that mix, stored:

    - `tar`: the verifier's acceptance, and `tar_from_N`, that of the tokens from place N of the response to the next
      such number;
    - `stop_share_of_rejected`: the share of stop tokens among what is rejected;
    - `entropy`: of the student, nats.

    Some responses are shown with the tokens that are rejected.

    Args:
        role: Who wrote.
        pair: Architectures, shared vocabulary and compute dtype.
        frozen: The teacher's parameters, and what the evaluated ones are adapters of.
        taken: Gives this process's share of what the newest step took, or None (`Recorder.taken`).
        verifier: Whose acceptance it is.
        stop_ids: Where a response ends.
        longest: Tokens of the longest response.
        every: Steps of training between two evaluations.
        parts: Into how many parts the batch is cut to save memory.
        place: Puts a part on the mesh.
        show: Takes prompt, response and each token's acceptance, from the first part; None shows nothing.
        memory_budget: Bytes for the logits that exist at once; None leaves the choice to `distill.map_logits`.
    """

    def __init__(
        self,
        role: Role,
        pair: Pair,
        frozen: Frozen,
        taken: Callable[[], Taken | None],
        verifier: Callable[..., Array],
        *,
        stop_ids: Sequence[int],
        longest: int,
        every: int,
        parts: int = 1,
        place: Callable[[Batch], Batch] = jax.device_put,
        show: Callable[[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]], None] | None = None,
        memory_budget: int | None = None,
    ):
        self.name = ROLLOUTS[role]
        self.every = every
        self._frozen = frozen
        self._taken = taken
        self._parts = parts
        self._place = place
        self._show = show
        self._width = -(-longest // _BINS)
        bins = -(-longest // self._width)

        def measure(student_logits: Array, teacher_logits: Array, labels: Array) -> tuple[Array, Array]:
            acceptance = call_with_labels(verifier, "verifier", student_logits, teacher_logits, labels)
            return acceptance, losses.entropy(student_logits)

        def rates(params: Params, frozen: Frozen, batch: Batch) -> tuple[dict[str, Rate], Array]:
            student_params = pair.student_params(params, frozen.base)
            student_hidden, teacher_hidden = pair.hidden(student_params, frozen.teacher, batch)
            student_head, teacher_head = pair.heads(student_params, frozen.teacher)
            mask = batch.loss_mask
            acceptance, entropy = map_logits(
                measure,
                student_hidden,
                student_head,
                teacher_hidden,
                teacher_head,
                mask,
                vocab_size=pair.vocab_size,
                memory_budget=memory_budget,
                labels=batch.labels,
            )
            at_stops = mask & selection.is_stop_token(batch.labels, stop_ids)
            rejected = partial(selection.acceptance_rate, 1.0 - acceptance)
            by_position = partial(selection.acceptance_rate_by_position, bins=bins, bin_size=self._width)
            return {
                "tar": selection.acceptance_rate(acceptance, mask),
                "tar_from": by_position(acceptance, mask),
                "stop_share_of_rejected": Rate(rejected(at_stops).numerator, rejected(mask).numerator),
                "entropy": selection.acceptance_rate(entropy, mask),
            }, acceptance

        self._rates = jax.jit(rates)

    def __call__(self, params: Params) -> dict[str, float]:
        """Evaluates what is trained, and shows some of the text."""
        taken = self._taken()
        if taken is None:
            return {}
        total: Any = None
        for number in range(self._parts):
            # Part i has rows i, i + parts, ...: as many of each process.
            batch = self._place(jax.tree.map(lambda leaf, first=number: leaf[first :: self._parts], taken.batch))
            rates, acceptance = self._rates(params, self._frozen, batch)
            rates = jax.device_get(rates)
            total = rates if total is None else jax.tree.map(np.add, total, rates)
            if number == 0 and self._show is not None:
                self._show(taken.step, _responses(batch, acceptance)[:_SHOWN])
        if not total["tar"].denominator:
            return {}
        by_position = total.pop("tar_from")
        places = {
            f"tar_from_{index * self._width}": accepted / count
            for index, (accepted, count) in enumerate(zip(by_position.numerator, by_position.denominator, strict=True))
            if count
        }
        means = {name: rate.value for name, rate in total.items()}
        return {name: float(value) for name, value in (means | places).items()}


class SampleLog:
    """Writes responses for people: prompt and text in the log, all of it where the run's numbers go.

    Args:
        role: Who wrote.
        decode: Text of token ids, special tokens included.
        write: Takes a step and its samples (`MetricsWriter.write_samples`).
    """

    def __init__(self, role: Role, decode: Callable[[Sequence[int]], str], write: Callable[[int, list[dict]], None]):
        self._role = role
        self._decode = decode
        self._write = write

    def __call__(self, step: int, responses: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Writes responses: prompt, response and each token's acceptance."""
        samples = []
        for prompt, response, acceptance in responses:
            tokens = split_text(self._decode, response.tolist())
            rejected = (acceptance < _REJECTED).tolist()
            sample = {
                "step": step,
                "by": self._role,
                "prompt": self._decode(prompt.tolist()),
                "response": "".join(tokens),
                "marked": mark_rejected(tokens, rejected),
                "tokens": tokens,
                "acceptance": [round(float(value), 4) for value in acceptance],
            }
            samples.append(sample)
            prompt_end = sample["prompt"][-300:]
            shown = (textwrap.shorten(text, 400, placeholder=" ...") for text in (prompt_end, sample["marked"]))
            logger.info("step %d, the %s's text, [rejected]: %s >>> %s", step, self._role, *shown)
        if samples:
            self._write(step, samples)


def split_text(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    """The text of some ids, cut into what each token adds to it: a token by itself may be half a letter."""
    whole = decode(ids)
    ends = [min(len(decode(ids[: count + 1])), len(whole)) for count in range(len(ids))]
    ends = [0, *np.maximum.accumulate(ends).tolist()] if ids else [0]
    return [whole[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def mark_rejected(tokens: Sequence[str], rejected: Sequence[bool]) -> str:
    """The text with each rejected token in brackets."""
    return "".join(f"[{token}]" if out else token for token, out in zip(tokens, rejected, strict=True))


def _responses(batch: Batch, acceptance: Array) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prompt, response and its acceptance of each row that was written; every process has to ask."""
    leaves = (batch.input_ids, batch.labels, batch.loss_mask, acceptance)
    ids, labels, mask, accepted = (gather_to_host(leaf) for leaf in leaves)
    return [
        (ids[row, : np.argmax(mask[row]) + 1], labels[row, mask[row]], accepted[row, mask[row]])
        for row in np.flatnonzero(mask.any(axis=1))
    ]
