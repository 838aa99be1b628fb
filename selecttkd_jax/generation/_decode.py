"""Rows of text that are written together, one token of each a turn: prefilled, inserted, continued."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from selecttkd_jax import models
from selecttkd_jax._array_types import Key, Params, TokenIds, TokenMask
from selecttkd_jax.generation._sampling import Sampling, sample
from selecttkd_jax.sharding import shard_rows, shard_rows_and_heads

# The length of a row in the cache is a multiple of this: with an odd one a GPU's products would copy all keys and
# values in every layer of every token.
BLOCK = 64


def round_up(tokens: int, multiple: int) -> int:
    """The next multiple."""
    return -(-tokens // multiple) * multiple


class Slots(NamedTuple):
    """Rows that are being written, and rows that are free: those that have stopped, and those never filled."""

    token: Int[Array, " B"]  # each row's newest token, not yet in the cache
    positions: Int[Array, " B"]  # where that token stands in its text
    running: Bool[Array, " B"]  # rows still being written
    lengths: Int[Array, " B"]  # response tokens so far, the stop token included
    responses: Int[Array, "B N"]  # N = max_new_tokens; zeros past a row's length
    row_keys: Key  # [B]; a response's token number n is drawn with n folded in
    cache: models.KVCache


@dataclass(frozen=True)
class Decoder:
    """A model that writes alone: what its compiled programs depend on besides shapes; hashable.

    Attributes:
        config: The model's shape.
        sampling: How a token is drawn, and the most tokens of a response.
        vocab_size: Ids of the tokenizer; those past it, which pad the head, are never written. None: all of the head's.
        dtype: Compute and cache dtype; None takes the parameters' own.
    """

    config: models.DecoderConfig
    sampling: Sampling
    vocab_size: int | None = None
    dtype: jnp.dtype | None = None

    @property
    def known_ids(self) -> int:
        """Ids that a prompt may hold are below this."""
        return self.config.vocab_size

    def row_length(self, prompt_length: int) -> int:
        """What a row of the cache needs. A response's last token is never fed back: it has no slot."""
        return round_up(prompt_length + self.sampling.max_new_tokens - 1, BLOCK)

    @partial(jax.jit, static_argnames=("self", "rows", "length"))
    def make_slots(self, params: Params, rows: int, length: int, key: Key) -> Slots:
        """`rows` free rows of `length` tokens; `key` says of which kind the rows' keys are."""
        zeros = jnp.zeros((rows,), jnp.int32)
        dtype = params["embedding"].dtype if self.dtype is None else self.dtype
        slots = Slots(
            token=zeros,
            positions=zeros,
            running=zeros.astype(bool),
            lengths=zeros,
            responses=jnp.zeros((rows, self.sampling.max_new_tokens), jnp.int32),
            row_keys=jnp.broadcast_to(key, (rows,)),
            cache=models.init_cache(self.config, rows, length, dtype),
        )
        return place(slots)

    @partial(jax.jit, static_argnames="self", donate_argnames="slots")
    def insert(
        self,
        params: Params,
        slots: Slots,
        prompt_ids: Int[Array, "R W"],
        prompt_lengths: Int[Array, " R"],
        row_keys: Key,
        into: Int[Array, " R"],
        stop_ids: Int[Array, " S"],
    ) -> Slots:
        """Reads R prompts and draws the first token of each response.

        Args:
            params: The model's parameters.
            slots: B rows; given up.
            prompt_ids: Prompts, padded on the right.
            prompt_lengths: Tokens of each.
            row_keys: A key for each.
            into: The row that each goes to; B for a filler, which goes nowhere.
            stop_ids: What ends a response.
        """
        hidden, scratch = read_prompts(self.config, params, prompt_ids, slots.cache.keys[0].dtype, self.dtype)
        last = jnp.maximum(prompt_lengths - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        token = self._pick(params, hidden, row_keys, jnp.zeros_like(last))
        response = jnp.zeros((len(last), self.sampling.max_new_tokens), jnp.int32).at[:, 0].set(token)

        def put(old, new):
            return old.at[into].set(new, mode="drop")

        return place(
            Slots(
                token=put(slots.token, token),
                positions=put(slots.positions, prompt_lengths),
                running=put(slots.running, ~is_any(token, stop_ids) & (self.sampling.max_new_tokens > 1)),
                lengths=put(slots.lengths, jnp.ones_like(last)),
                responses=put(slots.responses, response),
                row_keys=put(slots.row_keys, row_keys),
                cache=insert_cache(slots.cache, scratch, into),
            )
        )

    @partial(jax.jit, static_argnames="self", donate_argnames="slots")
    def run(self, params: Params, slots: Slots, stop_ids: Int[Array, " S"], limit: Int[Array, ""]) -> Slots:
        """Writes on until at most `limit` rows are running. Gives `slots` up."""
        params = models.unstack_layers(params)  # once, and not in each turn of the loop
        every = jnp.arange(slots.token.shape[0])

        def advance(slots: Slots) -> Slots:
            hidden, cache = models.forward(
                self.config,
                params,
                slots.token[:, None],
                slots.positions[:, None],
                jnp.ones_like(slots.token)[:, None],
                slots.cache,
                dtype=self.dtype,
            )
            assert cache is not None
            token = self._pick(params, hidden, slots.row_keys, slots.lengths)
            token = jnp.where(slots.running, token, slots.token)
            moved = slots.running.astype(jnp.int32)
            at = jnp.where(slots.running, slots.lengths, self.sampling.max_new_tokens)  # past the end: nowhere
            lengths = slots.lengths + moved
            return place(
                Slots(
                    token=token,
                    positions=slots.positions + moved,
                    running=slots.running & ~is_any(token, stop_ids) & (lengths < self.sampling.max_new_tokens),
                    lengths=lengths,
                    responses=slots.responses.at[every, at].set(token, mode="drop"),
                    row_keys=slots.row_keys,
                    cache=cache,
                )
            )

        return lax.while_loop(lambda slots: jnp.sum(slots.running) > limit, advance, slots)

    def _pick(self, params: Params, hidden: Array, row_keys: Key, number: Int[Array, " B"]) -> Array:
        """Each row's token number `number`, from its hidden state `[B, 1, D]`."""
        logits = models.head_logits(self.config, params, hidden)[:, 0]
        if self.vocab_size is not None and self.vocab_size < self.config.vocab_size:
            known = jnp.arange(self.config.vocab_size)[None, :] < self.vocab_size
            logits = jnp.where(known, logits, -jnp.inf)
        return sample(logits, jax.vmap(jax.random.fold_in)(row_keys, number), self.sampling)


@partial(jax.jit, static_argnames=("config", "sampling", "vocab_size", "dtype"))
def decode(
    config: models.DecoderConfig,
    params: Params,
    prompt_ids: TokenIds,
    prompt_mask: TokenMask,
    stop_ids: Int[Array, " S"],
    row_keys: Key,
    *,
    sampling: Sampling,
    vocab_size: int | None = None,
    dtype: jnp.dtype | None = None,
) -> tuple[TokenIds, Int[Array, " B"]]:
    """Generates one response per row, until every row has stopped or `max_new_tokens` is reached.

    A row's tokens depend on its prompt and its key alone, not on the other rows or on how far it was padded (up to
    the rounding of differently shaped matrix products).

    Args:
        config: The model's shape.
        params: Its parameters.
        prompt_ids: Prompts, padded on the right.
        prompt_mask: True on prompt tokens. A row without any is a filler: its response is empty.
        stop_ids: A row stops after producing any of these; may be empty.
        row_keys: One PRNG key per row; the row's token number n is drawn with n folded in.
        sampling: How a token is drawn, and the most tokens of a response.
        vocab_size: Ids of the tokenizer; those past it, which pad the head, are never written. None: all of the head's.
        dtype: Compute and cache dtype; None takes the parameters' own.

    Returns:
        The responses `[B, max_new_tokens]`, zero past their end, and their lengths `[B]`, the stop token included.
    """
    batch, width = prompt_ids.shape
    decoder = Decoder(config, sampling, vocab_size, dtype)
    params = models.unstack_layers(params)
    slots = decoder.make_slots(params, batch, decoder.row_length(width), row_keys[0])
    prompt_lengths = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    into = jnp.where(prompt_lengths > 0, jnp.arange(batch), batch)
    slots = decoder.insert(params, slots, prompt_ids, prompt_lengths, row_keys, into, stop_ids)
    slots = decoder.run(params, slots, stop_ids, jnp.int32(0))
    return slots.responses, slots.lengths


def read_prompts(
    config: models.DecoderConfig,
    params: Params,
    prompt_ids: Int[Array, "R W"],
    cache_dtype: jnp.dtype,
    dtype: jnp.dtype | None = None,
) -> tuple[Array, models.KVCache]:
    """Hidden states of prompts that are padded on the right, and a cache of W tokens with their keys and values."""
    rows, width = prompt_ids.shape
    positions = jnp.broadcast_to(jnp.arange(width)[None, :], (rows, width))
    scratch = models.init_cache(config, rows, width, cache_dtype)
    hidden, scratch = models.forward(
        config, params, prompt_ids, positions, jnp.ones_like(prompt_ids), scratch, dtype=dtype
    )
    assert scratch is not None  # one went in
    return hidden, scratch


def insert_cache(cache: models.KVCache, scratch: models.KVCache, into: Int[Array, " R"]) -> models.KVCache:
    """A cache into whose rows `into` those of a shorter one are put."""
    every, tokens = slice(None), slice(scratch.values[0].shape[2])

    def put(old, new, *where):
        return old.at[(into, *where)].set(new, mode="drop")

    keys = zip(cache.keys, scratch.keys, strict=True)
    values = zip(cache.values, scratch.values, strict=True)
    return models.KVCache(
        keys=tuple(put(old, new, every, every, tokens) for old, new in keys),
        values=tuple(put(old, new, every, tokens) for old, new in values),
    )


def is_any(token: Int[Array, " B"], ids: Int[Array, " S"]) -> Bool[Array, " B"]:
    """Which tokens are among the ids."""
    return jnp.any(token[:, None] == ids[None, :], axis=1)


def place(slots: Any) -> Any:
    """Rows over the mesh's batch axes, and a cache's heads over `tensor`: the same wherever slots come from."""

    def shard(part: Any) -> Any:
        if isinstance(part, models.KVCache):
            return jax.tree.map(shard_rows_and_heads, part)
        return shard_rows(part)

    return type(slots)(*map(shard, slots))
