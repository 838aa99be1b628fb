"""Rows of text that are written together, one token of each a turn: prefilled, inserted, continued."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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


@dataclass(frozen=True)
class Decoder:
    """What the compiled programs of a decoding depend on besides shapes; hashable.

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


def row_length(prompt_length: int, sampling: Sampling) -> int:
    """What a row of the cache needs, rounded up to BLOCK. A response's last token is never fed back: it has no slot."""
    return -(-(prompt_length + sampling.max_new_tokens - 1) // BLOCK) * BLOCK


class Slots(NamedTuple):
    """Rows that are being written, and rows that are free: those that have stopped, and those never filled."""

    token: Int[Array, " B"]  # each row's newest token, not yet in the cache
    positions: Int[Array, " B"]  # where that token stands in its text
    running: Bool[Array, " B"]  # rows still being written
    lengths: Int[Array, " B"]  # response tokens so far, the stop token included
    responses: Int[Array, "B N"]  # N = max_new_tokens; zeros past a row's length
    row_keys: Key  # [B]; a response's token number n is drawn with n folded in
    cache: models.KVCache


@partial(jax.jit, static_argnames=("decoder", "rows", "cache_length", "dtype"))
def make_slots(decoder: Decoder, rows: int, cache_length: int, dtype: jnp.dtype, key: Key) -> Slots:
    """`rows` free rows; `key` says of which kind the rows' keys are."""
    zeros = jnp.zeros((rows,), jnp.int32)
    slots = Slots(
        token=zeros,
        positions=zeros,
        running=zeros.astype(bool),
        lengths=zeros,
        responses=jnp.zeros((rows, decoder.sampling.max_new_tokens), jnp.int32),
        row_keys=jnp.broadcast_to(key, (rows,)),
        cache=models.init_cache(decoder.config, rows, cache_length, dtype),
    )
    return _place(slots)


@partial(jax.jit, static_argnames="decoder", donate_argnames="slots")
def insert(
    decoder: Decoder,
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
        decoder: The model and how it is sampled from.
        params: The model's parameters.
        slots: B rows; given up.
        prompt_ids: Prompts, padded on the right.
        prompt_lengths: Tokens of each.
        row_keys: A key for each.
        into: The row that each goes to; B for a filler, which goes nowhere.
        stop_ids: What ends a response.
    """
    rows, width = prompt_ids.shape
    positions = jnp.broadcast_to(jnp.arange(width)[None, :], (rows, width))
    scratch = models.init_cache(decoder.config, rows, width, slots.cache.keys[0].dtype)
    hidden, scratch = models.forward(
        decoder.config, params, prompt_ids, positions, jnp.ones_like(prompt_ids), scratch, dtype=decoder.dtype
    )
    assert scratch is not None  # one went in
    last = jnp.maximum(prompt_lengths - 1, 0)
    token = _pick(
        decoder,
        params,
        jnp.take_along_axis(hidden, last[:, None, None], axis=1),
        row_keys,
        jnp.zeros_like(last),
    )
    response = jnp.zeros((rows, decoder.sampling.max_new_tokens), jnp.int32).at[:, 0].set(token)

    def put(old, new, *where):
        return old.at[(into, *where)].set(new, mode="drop")

    keys = zip(slots.cache.keys, scratch.keys, strict=True)
    values = zip(slots.cache.values, scratch.values, strict=True)
    every = slice(None)
    return _place(
        Slots(
            token=put(slots.token, token),
            positions=put(slots.positions, prompt_lengths),
            running=put(slots.running, ~_is_any(token, stop_ids) & (decoder.sampling.max_new_tokens > 1)),
            lengths=put(slots.lengths, jnp.ones_like(last)),
            responses=put(slots.responses, response),
            row_keys=put(slots.row_keys, row_keys),
            cache=models.KVCache(
                keys=tuple(put(old, new, every, every, slice(width)) for old, new in keys),
                values=tuple(put(old, new, every, slice(width)) for old, new in values),
            ),
        )
    )


@partial(jax.jit, static_argnames="decoder", donate_argnames="slots")
def run(decoder: Decoder, params: Params, slots: Slots, stop_ids: Int[Array, " S"], limit: Int[Array, ""]) -> Slots:
    """Writes on until at most `limit` rows are running. Gives `slots` up."""
    params = models.unstack_layers(params)  # once, and not in each turn of the loop
    every = jnp.arange(slots.token.shape[0])

    def advance(slots: Slots) -> Slots:
        hidden, cache = models.forward(
            decoder.config,
            params,
            slots.token[:, None],
            slots.positions[:, None],
            jnp.ones_like(slots.token)[:, None],
            slots.cache,
            dtype=decoder.dtype,
        )
        assert cache is not None
        token = _pick(decoder, params, hidden, slots.row_keys, slots.lengths)
        token = jnp.where(slots.running, token, slots.token)
        moved = slots.running.astype(jnp.int32)
        at = jnp.where(slots.running, slots.lengths, decoder.sampling.max_new_tokens)  # past the end: nowhere
        lengths = slots.lengths + moved
        return _place(
            Slots(
                token=token,
                positions=slots.positions + moved,
                running=slots.running & ~_is_any(token, stop_ids) & (lengths < decoder.sampling.max_new_tokens),
                lengths=lengths,
                responses=slots.responses.at[every, at].set(token, mode="drop"),
                row_keys=slots.row_keys,
                cache=cache,
            )
        )

    return lax.while_loop(lambda slots: jnp.sum(slots.running) > limit, advance, slots)


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
    cache_dtype = params["embedding"].dtype if dtype is None else dtype
    slots = make_slots(decoder, batch, row_length(width, sampling), cache_dtype, row_keys[0])
    prompt_lengths = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    into = jnp.where(prompt_lengths > 0, jnp.arange(batch), batch)
    slots = insert(decoder, params, slots, prompt_ids, prompt_lengths, row_keys, into, stop_ids)
    slots = run(decoder, params, slots, stop_ids, jnp.int32(0))
    return slots.responses, slots.lengths


def _pick(decoder: Decoder, params: Params, hidden: Array, row_keys: Key, number: Int[Array, " B"]) -> Array:
    """Each row's token number `number`, from its hidden state `[B, 1, D]`."""
    logits = models.head_logits(decoder.config, params, hidden)[:, 0]
    if decoder.vocab_size is not None and decoder.vocab_size < decoder.config.vocab_size:
        known = jnp.arange(decoder.config.vocab_size)[None, :] < decoder.vocab_size
        logits = jnp.where(known, logits, -jnp.inf)
    return sample(logits, jax.vmap(jax.random.fold_in)(row_keys, number), decoder.sampling)


def _is_any(token: Int[Array, " B"], ids: Int[Array, " S"]) -> Bool[Array, " B"]:
    return jnp.any(token[:, None] == ids[None, :], axis=1)


def _place(slots: Slots) -> Slots:
    """Rows over the mesh's batch axes, and the cache's heads over `tensor`: the same wherever slots come from."""
    cache = jax.tree.map(shard_rows_and_heads, slots.cache)
    return Slots(*(shard_rows(array) for array in slots[:-1]), cache=cache)
