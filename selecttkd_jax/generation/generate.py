"""Responses to any number of prompts: sorted by length into batches, answered, and put back in order."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax import models
from selecttkd_jax.array_types import Key, Params
from selecttkd_jax.checks import InputError, check_at_least
from selecttkd_jax.generation.decode import decode
from selecttkd_jax.generation.sampling import Sampling

# Prompts are padded to a multiple of this many tokens, so that few shapes are compiled.
BUCKET = 32


def generate(
    config: models.DecoderConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    stop_ids: Sequence[int],
    key: Key,
    batch_size: int = 8,
    dtype: jnp.dtype | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Answers every prompt.

    The same key gives the same responses whatever the batch size: each prompt draws with its own key, made from
    `key` and its index in `prompts`.

    Args:
        config: The model's shape.
        params: Its parameters.
        prompts: Token ids of each prompt, of any lengths.
        sampling: How tokens are drawn, and the most tokens of a response.
        stop_ids: A response ends with the first of these; may be empty.
        key: PRNG key; not used when sampling is greedy.
        batch_size: Prompts decoded together.
        dtype: Compute and cache dtype; None takes the parameters' own.
        progress: Called after each batch with the number of prompts it answered.

    Returns:
        The response token ids of each prompt, in the order of `prompts`. A response that met a stop token ends with
        it; one that does not was cut at `sampling.max_new_tokens`.

    Raises:
        InputError: An empty prompt, or a token id outside the model's vocabulary.
    """
    check_at_least("batch_size", batch_size, 1)
    _check_ids(prompts, stop_ids, config.vocab_size)
    # Short with short wastes no padding; the longest go first, so that running out of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    batch_size = min(batch_size, len(prompts))
    # A fixed length, so that the number of stop ids compiles nothing anew; no token is -1.
    stops = np.full(max(8, len(stop_ids)), -1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    row_key = jax.jit(jax.vmap(partial(jax.random.fold_in, key)))

    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), max(batch_size, 1)):
        indices = order[start : start + batch_size]
        ids, mask = _left_padded([prompts[index] for index in indices], batch_size)
        fillers = [0] * (batch_size - len(indices))  # so that the last batch has the shape of the others
        row_keys = row_key(np.array(indices + fillers))
        tokens, lengths = decode(config, params, ids, mask, stops, row_keys, sampling=sampling, dtype=dtype)
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        for row, index in enumerate(indices):
            responses[index] = tokens[row, : lengths[row]].tolist()
        if progress is not None:
            progress(len(indices))
    return responses


def _check_ids(prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], vocab_size: int) -> None:
    # JAX clamps an index that is out of range: without this, a wrong tokenizer would generate nonsense.
    for stop_id in stop_ids:
        if not 0 <= stop_id < vocab_size:
            raise InputError(f"stop id {stop_id} is outside [0, {vocab_size}), the model's vocabulary")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {number} is empty; a prompt needs at least one token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise InputError(
                f"prompt {number} has a token id outside [0, {vocab_size}), the model's vocabulary; "
                "was it made with this model's tokenizer?"
            )


def _left_padded(prompts: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[rows, width]`, width a multiple of BUCKET; rows past the prompts are all padding."""
    longest = max(len(prompt) for prompt in prompts)
    width = -(-longest // BUCKET) * BUCKET
    ids = np.zeros((rows, width), np.int32)
    mask = np.zeros((rows, width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return ids, mask
