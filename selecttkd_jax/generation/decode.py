"""Prefill and decode under one jit: a batch of prompts in, their responses out."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from selecttkd_jax import models
from selecttkd_jax.array_types import Key, Params, TokenIds, TokenMask
from selecttkd_jax.generation.sampling import Sampling, sample


class _Decoding(NamedTuple):
    """What the decode loop carries."""

    step: Int[Array, ""]  # tokens written so far, the same for every row still running
    token: Int[Array, " B"]  # each row's newest token, not yet in the cache
    done: Bool[Array, " B"]  # rows that have produced a stop token, and fillers
    lengths: Int[Array, " B"]  # response tokens of each row, the stop token included
    responses: Int[Array, "B N"]  # N = max_new_tokens; zeros past a row's length
    cache: models.KVCache


@partial(jax.jit, static_argnames=("config", "sampling", "dtype"))
def decode(
    config: models.DecoderConfig,
    params: Params,
    prompt_ids: TokenIds,
    prompt_mask: TokenMask,
    stop_ids: Int[Array, " S"],
    row_keys: Key,
    *,
    sampling: Sampling,
    dtype: jnp.dtype | None = None,
) -> tuple[TokenIds, Int[Array, " B"]]:
    """Generates one response per row, until every row has stopped or `max_new_tokens` is reached.

    A row's tokens depend on its prompt and its key alone, not on the other rows or on how far it was padded (up to
    the rounding of differently shaped matrix products).

    Args:
        config: The model's shape.
        params: Its parameters.
        prompt_ids: Prompts, padded on the left, so that all rows end at the same slot of the cache.
        prompt_mask: True on prompt tokens. A row without any is a filler: its response is empty.
        stop_ids: A row stops after producing any of these; may be empty.
        row_keys: One PRNG key per row; the row's token number n is drawn with n folded in.
        sampling: How a token is drawn, and the most tokens of a response.
        dtype: Compute and cache dtype; None takes the parameters' own.

    Returns:
        The responses `[B, max_new_tokens]`, zero past their end, and their lengths `[B]`, the stop token included.
    """
    batch, prompt_length = prompt_ids.shape
    cache_dtype = params["embedding"].dtype if dtype is None else dtype
    # The last token is never fed back, so it needs no slot.
    cache = models.init_cache(config, batch, prompt_length + sampling.max_new_tokens - 1, cache_dtype)

    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1, dtype=jnp.int32) - 1, 0)
    hidden, cache = models.forward(
        config, params, prompt_ids, positions, prompt_mask.astype(jnp.int32), cache, dtype=dtype
    )
    assert cache is not None  # one went in
    prompt_lengths = positions[:, -1] + 1
    every_row = jnp.ones((batch, 1), jnp.int32)

    def pick(hidden, step):
        logits = models.head_logits(config, params, hidden[:, -1:])[:, 0]
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
        return sample(logits, keys, sampling)

    def is_stop(token):
        return jnp.any(token[:, None] == stop_ids[None, :], axis=1)

    def running(state: _Decoding):
        return (state.step < sampling.max_new_tokens) & ~jnp.all(state.done)

    def advance(state: _Decoding) -> _Decoding:
        positions = (prompt_lengths + state.step - 1)[:, None]
        hidden, cache = models.forward(
            config, params, state.token[:, None], positions, every_row, state.cache, dtype=dtype
        )
        assert cache is not None
        token = jnp.where(state.done, 0, pick(hidden, state.step))
        return _Decoding(
            step=state.step + 1,
            token=token,
            done=state.done | is_stop(token),
            lengths=state.lengths + (~state.done).astype(jnp.int32),
            responses=lax.dynamic_update_slice(state.responses, token[:, None], (0, state.step)),
            cache=cache,
        )

    is_filler = ~jnp.any(prompt_mask, axis=1)
    first = pick(hidden, 0)
    responses = jnp.zeros((batch, sampling.max_new_tokens), jnp.int32)
    state = _Decoding(
        step=jnp.int32(1),
        token=first,
        done=is_filler | is_stop(first),
        lengths=jnp.where(is_filler, 0, 1),
        responses=responses.at[:, 0].set(first),
        cache=cache,
    )
    state = lax.while_loop(running, advance, state)
    return state.responses, state.lengths
