"""Rounds of rollouts: written and scored once, learned from in several passes."""

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax._array_types import Params
from selecttkd_jax.data import Batch, Rollouts
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share
from selecttkd_jax.sources._stored import OfStored
from selecttkd_jax.sources._texts import Text, gather_texts, pack_texts, take_share, unpack_texts
from selecttkd_jax.training import Frozen, Pair, Source, TrainState, score_labels, stream_key

_EPSILON = 1e-8  # keeps what is the same everywhere from being divided by 0


@dataclass(frozen=True)
class Scorer:
    """Reads a batch with both models.

    Attributes:
        mesh: The run's.
        pair: Both architectures.
        frozen: The teacher, and what the student's adapters adapt.
        memory_budget: Bytes for the logits that exist at once.
    """

    mesh: Mesh
    pair: Pair
    frozen: Frozen
    memory_budget: int | None = None

    def __call__(self, trained: Params, batch: Batch, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """`log q` and `log p` of the labels of the whole batch, `[rows, T]` each, from this process's share of it."""
        placed = place_batch(self.mesh, batch, rows)
        scores = score_labels(self.pair, trained, self.frozen, placed, memory_budget=self.memory_budget)
        return gather_to_host(scores[0]), gather_to_host(scores[1])


@dataclass(frozen=True)
class Rewards:
    """What a token is worth, from its log-probabilities under student and teacher, q and p.

        r_t = clip((log p(y_t) - log q(y_t)) / scale, -limit, limit)
        R_t = sum_{s >= t} discount^(s - t) r_s / (response tokens from t on)
        A = (R - mean R) / std R   over all tokens

    Log-probabilities are log-softmaxes, which no constant added to the logits changes: the centring of logits in the
    paper's code is without effect.

    Attributes:
        teacher_share: a of the mixture (1 - a) q + a p that tokens were drawn from.
        discount: In [0, 1].
        scale: Divides a reward.
        limit: The largest reward, positive or negative.

    Source: Gu et al., 2024, "MiniLLM", section 2.2, and microsoft/LMOps, minillm/losses.py and reward.py, whose return
    includes the reward of its own step, though the paper's begins after it, and which whitens a micro-batch at a time.
    """

    teacher_share: float = 0.2
    discount: float = 0.95
    scale: float = 0.5
    limit: float = 100.0

    def importance(self, log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        """The weight w = q / ((1 - a) q + a p) of each token."""
        with np.errstate(over="ignore"):
            odds = np.exp(log_p.astype(np.float64) - log_q)
            return 1 / (1 - self.teacher_share + self.teacher_share * odds)

    def advantages(self, log_q: np.ndarray, log_p: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A of each token [rows, T] of a whole round; 0 outside the mask."""
        rewards = np.clip((log_p.astype(np.float64) - log_q) / self.scale, -self.limit, self.limit) * mask
        returns, following = np.zeros_like(rewards), np.zeros(len(rewards))
        for place in reversed(range(rewards.shape[1])):
            following = rewards[:, place] + self.discount * following
            returns[:, place] = following
        returns /= np.maximum(np.cumsum(mask[:, ::-1], axis=1)[:, ::-1], 1)
        valid = returns[mask]
        if not valid.size:
            return returns
        return (returns - valid.mean()) / np.sqrt(valid.var() + _EPSILON) * mask


class _Round(NamedTuple):
    """The rows of a round, whole on every process."""

    begun: int  # finished steps when it was written
    texts: list[Text]
    log_q: np.ndarray  # float32 [rows, T], of the student that wrote
    log_p: np.ndarray


class RolloutBuffer(OfStored):
    """Rounds of batches that are written and scored at once and passed over several times, each time in a new order.

    The order comes from `state.key` and the step at which a pass begins. What is left of a round (tokens and both
    log-probabilities of each, exactly) is the source's state; importance and advantages follow from it.

    Args:
        texts: Gives `round_steps` written batches when a round begins.
        score: From `Scorer`.
        rewards: What tokens are worth.
        mesh: Over which the rows of a batch are spread.
        round_steps: Batches of a round.
        passes: How often a round is passed over.
    """

    def __init__(
        self,
        texts: Source,
        score: Callable[[Params, Batch, int], tuple[np.ndarray, np.ndarray]],
        rewards: Rewards,
        mesh: Mesh,
        *,
        round_steps: int,
        passes: int,
    ):
        super().__init__(texts)
        self._score = score
        self._rewards = rewards
        self._mesh = mesh
        self._round_steps = round_steps
        self._passes = passes
        self._round: _Round | None = None
        ids = texts.shapes.input_ids
        self._rows = ids.shape[0]
        number = jax.ShapeDtypeStruct(ids.shape, np.float32)
        self.shapes = Rollouts(texts.shapes, number, number, number)

    def next(self, state: TrainState) -> Rollouts:
        """The next batch of the round; a new round where the last one is used up."""
        current = self._round = self._round or self._write(state)
        step = int(state.step)
        number, place = divmod(step - current.begun, self._round_steps)
        key = stream_key(state.key, "passes", current.begun + number * self._round_steps)
        order = np.asarray(jax.device_get(jax.random.permutation(key, len(current.texts))))
        batch = self._take(current, order[place * self._rows : (place + 1) * self._rows])
        if step + 1 == current.begun + self._passes * self._round_steps:
            self._round = None
        return batch

    def describe(self, step: int) -> str:
        """A batch mixes rows of all of its round."""
        return "rollouts" if self._round is None else f"rollouts written after step {self._round.begun}"

    def get_state(self) -> dict[str, Any]:
        """The position in the stored rows, and the round that is not used up."""
        kept = None
        if self._round is not None:
            mask = np.stack([text.mask for text in self._round.texts])
            scores = np.stack([self._round.log_q[mask], self._round.log_p[mask]])
            kept = {
                "begun": self._round.begun,
                "texts": pack_texts(self._round.texts),
                "scores": base64.b64encode(zlib.compress(scores.astype("<f4").tobytes())).decode(),
            }
        return {"texts": super().get_state(), "round": kept}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a state."""
        super().set_state(state["texts"])
        self._round, kept = None, state["round"]
        if kept is not None:
            texts = unpack_texts(kept["texts"], self.shapes.old_log_prob.shape[1])
            mask = np.stack([text.mask for text in texts])
            scores = np.zeros((2, *mask.shape), np.float32)
            raw = zlib.decompress(base64.b64decode(kept["scores"]))
            scores[:, mask] = np.frombuffer(raw, "<f4").reshape(2, -1)
            self._round = _Round(kept["begun"], texts, scores[0], scores[1])

    def _write(self, state: TrainState) -> _Round:
        batches = [self._stored.next(state) for _ in range(self._round_steps)]
        texts = [text for batch in batches for text in gather_texts(self._mesh, batch, self._rows)]
        scores = [self._score(state.params, batch, self._rows) for batch in batches]
        log_q, log_p = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        return _Round(int(state.step), texts, log_q, log_p)

    def _take(self, current: _Round, rows: np.ndarray) -> Rollouts:
        """This process's share of a batch of these rows of the round."""
        mask = np.stack([text.mask for text in current.texts])
        importance = self._rewards.importance(current.log_q, current.log_p) * mask
        advantage = self._rewards.advantages(current.log_q, current.log_p, mask)
        part, parts = process_share(self._mesh, len(rows))
        own = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        return Rollouts(
            rows=take_share(self._mesh, [current.texts[row] for row in rows]),
            old_log_prob=current.log_q[own],
            importance=importance[own].astype(np.float32),
            advantage=advantage[own].astype(np.float32),
        )
