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
from selecttkd_jax.generation._decode import BLOCK, insert_cache, is_any, place, read_prompts, round_up
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


class Turns(NamedTuple):
    """Rows that are being written, and rows that are free: those that have stopped, and those never filled."""

    token: Int[Array, " B"]  # each row's newest token
    start: Int[Array, " B"]  # where the prompt's last token stands
    running: Bool[Array, " B"]  # rows still being written
    lengths: Int[Array, " B"]  # response tokens so far, the stop token included
    responses: Int[Array, "B N"]  # N = max_new_tokens + block; zeros past a row's length
    row_keys: Key  # [B]
    student: models.KVCache
    teacher: models.KVCache


@dataclass(frozen=True)
class Interleaver:
    """Two models that write together, as `Decoder` is one that writes alone; parameters are a pair of theirs.

    Attributes:
        configs: The shapes of student and teacher.
        rule: Which proposals stand, and how many there are in a turn.
        sampling: How either model's token is drawn, and the most tokens of a response.
        vocab_size: Ids of the tokenizer both share; no others are written.
    """

    configs: tuple[models.DecoderConfig, models.DecoderConfig]
    rule: KeepRule
    sampling: Sampling
    vocab_size: int

    @property
    def known_ids(self) -> int:
        """Ids that a prompt may hold are below this."""
        return min(config.vocab_size for config in self.configs)

    def row_length(self, prompt_length: int) -> int:
        """What a row of the caches needs: a turn's proposals may go past the most tokens of a response."""
        return round_up(prompt_length + self.sampling.max_new_tokens + self.rule.block, BLOCK)

    @partial(jax.jit, static_argnames=("self", "rows", "length"))
    def make_slots(self, params: tuple[Params, Params], rows: int, length: int, key: Key) -> Turns:
        """`rows` free rows of `length` tokens; `key` says of which kind the rows' keys are."""
        zeros = jnp.zeros((rows,), jnp.int32)
        student, teacher = (
            models.init_cache(config, rows, length, part["embedding"].dtype)
            for config, part in zip(self.configs, params, strict=True)
        )
        return place(
            Turns(
                token=zeros,
                start=zeros,
                running=zeros.astype(bool),
                lengths=zeros,
                responses=jnp.zeros((rows, self.sampling.max_new_tokens + self.rule.block), jnp.int32),
                row_keys=jnp.broadcast_to(key, (rows,)),
                student=student,
                teacher=teacher,
            )
        )

    @partial(jax.jit, static_argnames="self", donate_argnames="slots")
    def insert(
        self,
        params: tuple[Params, Params],
        slots: Turns,
        prompt_ids: Int[Array, "R W"],
        prompt_lengths: Int[Array, " R"],
        row_keys: Key,
        into: Int[Array, " R"],
        stop_ids: Int[Array, " S"],
    ) -> Turns:
        """Reads R prompts with both models, as `Decoder.insert` does with one; draws nothing yet.

        A prompt's last token is fed again in the first turn, which so is like all others.
        """
        del stop_ids
        start = jnp.maximum(prompt_lengths - 1, 0)

        def put(old, new):
            return old.at[into].set(new, mode="drop")

        def read(config, part, cache):
            return insert_cache(cache, read_prompts(config, part, prompt_ids, part["embedding"].dtype)[1], into)

        return place(
            Turns(
                token=put(slots.token, jnp.take_along_axis(prompt_ids, start[:, None], axis=1)[:, 0]),
                start=put(slots.start, start),
                running=put(slots.running, True),
                lengths=put(slots.lengths, 0),
                responses=put(slots.responses, 0),
                row_keys=put(slots.row_keys, row_keys),
                student=read(self.configs[0], params[0], slots.student),
                teacher=read(self.configs[1], params[1], slots.teacher),
            )
        )

    @partial(jax.jit, static_argnames="self", donate_argnames="slots")
    def run(
        self, params: tuple[Params, Params], slots: Turns, stop_ids: Int[Array, " S"], limit: Int[Array, ""]
    ) -> Turns:
        """Writes on, turn by turn, until at most `limit` rows are running. Gives `slots` up."""
        params = (models.unstack_layers(params[0]), models.unstack_layers(params[1]))  # once, and not in each turn
        turn = partial(self._turn, params, stop_ids)
        return lax.while_loop(lambda slots: jnp.sum(slots.running) > limit, turn, slots)

    def _turn(self, params: tuple[Params, Params], stop_ids: Array, slots: Turns) -> Turns:
        """The student proposes, the teacher looks at all proposals at once."""
        block, most = self.rule.block, self.sampling.max_new_tokens
        streams = (jnp.full_like(slots.lengths, stream, jnp.uint32) for stream in (TEACHER, COIN))
        teacher_keys, coin_keys = (_fold_in(slots.row_keys, stream) for stream in streams)
        places = jnp.arange(block)[None, :]

        def score(model, ids, first, cache):
            """Logits of the tokens after `ids` [B, T], the first of which is response token `first` [B] - 1."""
            positions = (slots.start + first)[:, None] + jnp.arange(ids.shape[1])[None, :]
            hidden, cache = models.forward(
                self.configs[model], params[model], ids, positions, jnp.ones_like(ids), cache
            )
            assert cache is not None
            logits = models.head_logits(self.configs[model], params[model], hidden)
            return mask_vocabulary(logits, self.vocab_size), cache

        def propose(carry, place):
            token, cache = carry
            logits, cache = score(0, token[:, None], slots.lengths + place, cache)
            token = sample(logits[:, 0], _fold_in(slots.row_keys, slots.lengths + place), self.sampling)
            return (token, cache), token

        (_, student), proposals = lax.scan(propose, (slots.token, slots.student), jnp.arange(block))
        proposals = proposals.T
        fed = jnp.concatenate([slots.token[:, None], proposals[:, :-1]], axis=1)
        logits, teacher = score(1, fed, slots.lengths, slots.teacher)
        coins = jax.vmap(_fold_in)(jnp.repeat(coin_keys[:, None], block, axis=1), slots.lengths[:, None] + places)
        kept = jnp.sum(jnp.cumprod(self.rule(logits, proposals, coins).astype(jnp.int32), axis=1), axis=1)

        # What stands, and the teacher's token after it.
        logits = jnp.take_along_axis(logits, jnp.minimum(kept, block - 1)[:, None, None], axis=1)[:, 0]
        replacement = sample(logits, _fold_in(teacher_keys, slots.lengths + kept), self.sampling)
        written = jnp.where(places == kept[:, None], replacement[:, None], proposals)
        stops = jax.vmap(is_any, (1, None), 1)(written, stop_ids)
        until_stop = jnp.where(jnp.any(stops, axis=1), jnp.argmax(stops, axis=1) + 1, block).astype(jnp.int32)
        new = jnp.minimum(jnp.minimum(kept + 1, until_stop), most - slots.lengths)
        new = jnp.where(slots.running, new, 0)
        written = jnp.where(places < new[:, None], written, 0)

        # A slot past `new` is written again before its position is asked for: causality hides it until then.
        lengths = slots.lengths + new
        newest = jnp.take_along_axis(written, jnp.maximum(new - 1, 0)[:, None], axis=1)[:, 0]
        stopped = jnp.any(stops & (places < new[:, None]), axis=1)
        return place(
            Turns(
                token=jnp.where(slots.running, newest, slots.token),
                start=slots.start,
                running=slots.running & ~stopped & (lengths < most),
                lengths=lengths,
                responses=jax.vmap(lax.dynamic_update_slice)(slots.responses, written, (slots.lengths,)),
                row_keys=slots.row_keys,
                student=student,
                teacher=teacher,
            )
        )


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
    batch, width = prompt_ids.shape
    together = Interleaver(configs, rule, sampling, vocab_size)
    params = (models.unstack_layers(params[0]), models.unstack_layers(params[1]))
    slots = together.make_slots(params, batch, together.row_length(width), row_keys[0])
    prompt_lengths = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    into = jnp.where(prompt_lengths > 0, jnp.arange(batch), batch)
    slots = together.insert(params, slots, prompt_ids, prompt_lengths, row_keys, into, stop_ids)
    slots = together.run(params, slots, stop_ids, jnp.int32(0))
    return slots.responses[:, : sampling.max_new_tokens], slots.lengths


_fold_in = jax.vmap(jax.random.fold_in)
