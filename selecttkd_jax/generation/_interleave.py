"""Text that two models write together: the student proposes, and the teacher's token stands where a rule says so."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from selecttkd_jax import models
from selecttkd_jax._array_types import Key, Params, TokenIds, TokenMask
from selecttkd_jax._checks import check_in_range
from selecttkd_jax._errors import check_at_least
from selecttkd_jax.distill import mask_vocabulary
from selecttkd_jax.generation._decode import BLOCK
from selecttkd_jax.generation._sampling import Sampling, sample
from selecttkd_jax.selection import label_in_top_k

# What is folded into a row's key for the draws that are not the student's: past the number of any token.
TEACHER, COIN = 2**31, 2**31 + 1


@dataclass(frozen=True)
class KeepTopK:
    """A proposal stands where it is among the teacher's most likely tokens, with the ties of `greedy_top_k`.

    Attributes:
        top_k: How many of them.
        block: Tokens that the student proposes in a turn; changes the time it takes, and no token.
    """

    top_k: int = 25
    block: int = 5

    def __post_init__(self) -> None:
        check_at_least("top_k", self.top_k, 1)
        check_at_least("block", self.block, 1)

    def __call__(self, teacher_logits: Float[Array, "B T V"], proposals: TokenIds, keys: Key) -> TokenMask:
        """Which proposals stand; draws nothing."""
        del keys
        k = min(self.top_k, teacher_logits.shape[-1])
        return label_in_top_k(teacher_logits, teacher_logits, proposals, k=k) > 0


@dataclass(frozen=True)
class KeepShare:
    """A proposal stands with probability 1 - a, whatever it is, so that each token comes from (1 - a) q + a p.

    Attributes:
        teacher_share: a.
        block: As in `KeepTopK`.
    """

    teacher_share: float = 0.2
    block: int = 5

    def __post_init__(self) -> None:
        check_in_range("teacher_share", self.teacher_share, 0, 1)
        check_at_least("block", self.block, 1)

    def __call__(self, teacher_logits: Float[Array, "B T V"], proposals: TokenIds, keys: Key) -> TokenMask:
        """Which proposals stand, by one draw of each position's key."""
        del teacher_logits, proposals
        return jax.vmap(jax.vmap(jax.random.uniform))(keys) >= self.teacher_share


KeepRule = KeepTopK | KeepShare
"""When the student's token stays, and when the teacher's takes its place."""


class _Writing(NamedTuple):
    """What the loop carries. Both caches hold a row's tokens before its newest one."""

    lengths: Int[Array, " B"]  # response tokens of each row so far, the stop token included
    token: Int[Array, " B"]  # each row's newest token
    done: Bool[Array, " B"]  # rows that have produced a stop token or are full, and fillers
    responses: Int[Array, "B N"]  # N = max_new_tokens + block; zeros past a row's length
    student: models.KVCache
    teacher: models.KVCache


@partial(jax.jit, static_argnames=("configs", "rule", "sampling", "vocab_size"))
def interleave(
    configs: tuple[models.DecoderConfig, models.DecoderConfig],
    params: tuple[Params, Params],
    prompt_ids: TokenIds,
    prompt_mask: TokenMask,
    stop_ids: Int[Array, " S"],
    row_keys: Key,
    *,
    rule: KeepRule,
    sampling: Sampling,
    vocab_size: int,
) -> tuple[TokenIds, Int[Array, " B"]]:
    """Generates one response per row: at each position the student's token, or the teacher's where the rule drops it.

        y_n ~ q(. | x, y_<n);   where not rule(p(. | x, y_<n), y_n):   y_n ~ p(. | x, y_<n)

    Turn by turn: the student proposes `rule.block` tokens, the teacher scores them in one pass, and what follows the
    first dropped one is discarded. That saves passes of the teacher and changes no token: each is drawn with the key of
    its row and its own number, whatever was discarded before, so a row's text depends on its prompt and key alone.

    Args:
        configs: The shapes of student and teacher.
        params: Their parameters; each computes in the dtype of its embedding.
        prompt_ids: Prompts, padded on the right.
        prompt_mask: True on prompt tokens. A row without any is a filler: its response is empty.
        stop_ids: A row stops after producing any of these; may be empty.
        row_keys: One PRNG key per row. The student draws as in `decode`, the teacher with `TEACHER` folded in first.
        rule: Which proposals stand, and how many there are in a turn.
        sampling: How either model's token is drawn, and the most tokens of a response.
        vocab_size: Ids of the tokenizer both share; no others are written.

    Returns:
        The responses `[B, max_new_tokens]`, zero past their end, and their lengths `[B]`, the stop token included.

    Source: Xu et al., 2024, "Speculative Knowledge Distillation", Algorithm 1, for `KeepTopK`.
    """
    # Prefill. The prompt's last token is fed again in the first turn, which so is like all others.
    block, (batch, width) = rule.block, prompt_ids.shape
    slots = -(-(width + sampling.max_new_tokens + block) // BLOCK) * BLOCK
    positions = jnp.broadcast_to(jnp.arange(width)[None, :], (batch, width))
    last_positions = jnp.maximum(jnp.sum(prompt_mask, axis=1, dtype=jnp.int32) - 1, 0)
    params = (models.unstack_layers(params[0]), models.unstack_layers(params[1]))  # once, and not in each turn

    def prefill(config: models.DecoderConfig, params: Params) -> models.KVCache:
        cache = models.init_cache(config, batch, slots, params["embedding"].dtype)
        _, cache = models.forward(config, params, prompt_ids, positions, prompt_mask.astype(jnp.int32), cache)
        assert cache is not None  # one went in
        return cache

    (student_config, teacher_config), (student_params, teacher_params) = configs, params
    teacher_keys, coin_keys = (_fold_in(row_keys, jnp.full(batch, stream, jnp.uint32)) for stream in (TEACHER, COIN))
    places = jnp.arange(block)[None, :]

    def score(config, params, ids, first, cache):
        """Logits of the tokens after `ids` [B, T], the first of which is response token `first` [B] - 1."""
        positions = (last_positions + first)[:, None] + jnp.arange(ids.shape[1])[None, :]
        hidden, cache = models.forward(config, params, ids, positions, jnp.ones_like(ids), cache)
        assert cache is not None
        return mask_vocabulary(models.head_logits(config, params, hidden), vocab_size), cache

    def turn(state: _Writing) -> _Writing:
        # The student proposes, the teacher looks at all proposals at once.
        def propose(carry, place):
            token, cache = carry
            logits, cache = score(student_config, student_params, token[:, None], state.lengths + place, cache)
            token = sample(logits[:, 0], _fold_in(row_keys, state.lengths + place), sampling)
            return (token, cache), token

        (_, student), proposals = lax.scan(propose, (state.token, state.student), jnp.arange(block))
        proposals = proposals.T
        fed = jnp.concatenate([state.token[:, None], proposals[:, :-1]], axis=1)
        logits, teacher = score(teacher_config, teacher_params, fed, state.lengths, state.teacher)
        coins = jax.vmap(_fold_in)(jnp.repeat(coin_keys[:, None], block, axis=1), state.lengths[:, None] + places)
        kept = jnp.sum(jnp.cumprod(rule(logits, proposals, coins).astype(jnp.int32), axis=1), axis=1)

        # What stands, and the teacher's token after it.
        logits = jnp.take_along_axis(logits, jnp.minimum(kept, block - 1)[:, None, None], axis=1)[:, 0]
        replacement = sample(logits, _fold_in(teacher_keys, state.lengths + kept), sampling)
        written = jnp.where(places == kept[:, None], replacement[:, None], proposals)
        stops = jnp.any(written[..., None] == stop_ids[None, None, :], axis=-1)
        until_stop = jnp.where(jnp.any(stops, axis=1), jnp.argmax(stops, axis=1) + 1, block).astype(jnp.int32)
        new = jnp.minimum(jnp.minimum(kept + 1, until_stop), sampling.max_new_tokens - state.lengths)
        new = jnp.where(state.done, 0, new)
        written = jnp.where(places < new[:, None], written, 0)

        # A slot past `new` is written again before its position is asked for: causality hides it until then.
        lengths = state.lengths + new
        newest = jnp.take_along_axis(written, jnp.maximum(new - 1, 0)[:, None], axis=1)[:, 0]
        stopped = jnp.any(stops & (places < new[:, None]), axis=1)
        return _Writing(
            lengths=lengths,
            token=jnp.where(state.done, state.token, newest),
            done=state.done | stopped | (lengths == sampling.max_new_tokens),
            responses=jax.vmap(lax.dynamic_update_slice)(state.responses, written, (state.lengths,)),
            student=student,
            teacher=teacher,
        )

    state = _Writing(
        lengths=jnp.zeros(batch, jnp.int32),
        token=jnp.take_along_axis(prompt_ids, last_positions[:, None], axis=1)[:, 0],
        done=~jnp.any(prompt_mask, axis=1),
        responses=jnp.zeros((batch, sampling.max_new_tokens + block), jnp.int32),
        student=prefill(student_config, student_params),
        teacher=prefill(teacher_config, teacher_params),
    )
    state = lax.while_loop(lambda state: ~jnp.all(state.done), turn, state)
    return state.responses[:, : sampling.max_new_tokens], state.lengths


_fold_in = jax.vmap(jax.random.fold_in)
