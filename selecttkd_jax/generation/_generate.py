"""Answers to any number of prompts, written in a fixed number of slots that are refilled."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax import models
from selecttkd_jax._array_types import Key, Params
from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._mesh_axes import BATCH_AXES, automatic_axes
from selecttkd_jax.generation._decode import Decoder, Slots, round_up
from selecttkd_jax.generation._interleave import Interleaver, Turns
from selecttkd_jax.generation._sampling import Sampling
from selecttkd_jax.sharding import gather_to_host

BUCKET = 32
"""Prompts are padded to a multiple of this many tokens, so that few shapes are compiled."""


def generate(
    config: models.DecoderConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    stop_ids: Sequence[int],
    key: Key,
    slots: int = 8,
    vocab_size: int | None = None,
    dtype: jnp.dtype | None = None,
    answered: Collection[int] = (),
    on_answer: Callable[[int, list[int]], object] | None = None,
) -> list[list[int]]:
    """Answers every prompt.

    `slots` answers are written at a time. Where one ends, the next prompt takes its slot, so that a long answer holds
    up no other. The same key gives the same answers whatever the number of slots, the order in which they are filled
    and the mesh (up to the rounding of differently shaped matrix products): each prompt draws with its own key, made
    from `key` and its index in `prompts`. Where several processes share a mesh, each of them calls this with the same
    arguments and gets all answers.

    Args:
        config: The model's shape.
        params: Its parameters; as `lay_out` gives them, nothing is copied.
        prompts: Token ids of each prompt, of any lengths.
        sampling: How tokens are drawn, and the most tokens of a response.
        stop_ids: A response ends with the first of these; may be empty.
        key: PRNG key; not used when sampling is greedy.
        slots: Answers written at a time; on a mesh, rounded up to a multiple of the devices that share the rows.
        vocab_size: Ids of the tokenizer; those past it, which pad the head, are never written. None: all of the head's.
        dtype: Compute and cache dtype; None takes the parameters' own.
        answered: Indices of prompts to leave out. The others get the answers that they would get with them.
        on_answer: Called with a prompt's index and its response, as soon as that is finished.

    Returns:
        The response token ids of each prompt, in the order of `prompts`; empty for those left out. A response that met
        a stop token ends with it; one that does not was cut at `sampling.max_new_tokens`.

    Raises:
        InputError: An empty prompt, or a token id outside the model's vocabulary.
    """
    decoder = Decoder(config, sampling, vocab_size, None if dtype is None else jnp.dtype(dtype))
    options = {"stop_ids": stop_ids, "key": key, "slots": slots, "answered": answered, "on_answer": on_answer}
    return write_answers(decoder, models.unstack_layers(params), prompts, **options)


def write_answers(
    decoder: Decoder | Interleaver,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    key: Key,
    slots: int,
    longest_prompt: int | None = None,
    answered: Collection[int] = (),
    on_answer: Callable[[int, list[int]], object] | None = None,
) -> list[list[int]]:
    """Answers every prompt, as `generate` says, by one model or by two together.

    Args:
        decoder: Who writes, and how.
        params: The parameters of `decoder`, layer by layer.
        prompts: As in `generate`.
        stop_ids: As in `generate`.
        key: As in `generate`; or a key for each prompt.
        slots: As in `generate`.
        longest_prompt: Tokens of the longest prompt of any call: calls with as many prompts then share their compiled
            programs. None: of this call's.
        answered: As in `generate`.
        on_answer: As in `generate`.
    """
    check_at_least("slots", slots, 1)
    _check_ids(prompts, stop_ids, decoder.known_ids)
    responses: list[list[int]] = [[] for _ in prompts]
    waiting = _order(prompts, answered)
    if not waiting:
        return responses

    # Everything whose size compiles a program is fixed by all the prompts together, answered or not.
    devices = prod(automatic_axes().get(axis, 1) for axis in BATCH_AXES)
    slots = round_up(min(slots, len(prompts)), devices)
    group = round_up(max(slots // 16, 1), devices)  # read together: too few would read the weights too often
    longest = max(*map(len, prompts), longest_prompt or 0)
    # A fixed length, so that the number of stop ids compiles nothing anew; no token is -1.
    stops = np.full(max(8, len(stop_ids)), -1, np.int32)
    stops[: len(stop_ids)] = stop_ids

    state = decoder.make_slots(params, slots, cache_length(decoder, longest), key[0] if key.ndim else key)
    owners: dict[int, int] = {}  # which prompt's answer is being written in a slot
    while waiting or owners:
        free = [slot for slot in range(slots) if slot not in owners]
        while waiting and len(free) >= min(group, len(waiting)):
            indices = _take_group(waiting, prompts, group)
            taken, free = free[: len(indices)], free[len(indices) :]
            owners |= dict(zip(taken, indices, strict=True))
            ids, lengths = _pad_right([prompts[index] for index in indices], group)
            fillers = group - len(indices)  # so that every group has the same shape
            keys = _take_keys(key, np.array(indices + [0] * fillers))
            into = np.array(taken + [slots] * fillers)
            state = decoder.insert(params, state, ids, lengths, keys, into, stops)
        # On until there is room for a group, or until a group's worth of the last answers is there to be told of.
        busy = slots if waiting else len(owners) if on_answer is not None else 0
        state = decoder.run(params, state, stops, np.int32(max(busy - group, 0)))
        for slot, response in _finished(state, owners):
            index = owners.pop(slot)
            responses[index] = response
            if on_answer is not None:
                on_answer(index, response)
    return responses


def cache_length(decoder: Decoder | Interleaver, longest_prompt: int) -> int:
    """Tokens that a slot has room for: the longest prompt's bucket, and an answer."""
    return decoder.row_length(round_up(longest_prompt, BUCKET))


@jax.jit
def _take_keys(key: Key, numbers: np.ndarray) -> Key:
    """The keys of the prompts of these numbers."""
    return key[numbers] if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(numbers)


def _finished(state: Slots | Turns, owners: dict[int, int]) -> Iterator[tuple[int, list[int]]]:
    running, lengths, responses = (gather_to_host(x) for x in (state.running, state.lengths, state.responses))
    for slot in sorted(owners):
        if not running[slot]:
            yield slot, responses[slot, : lengths[slot]].tolist()


def _bucket(prompt: Sequence[int]) -> int:
    return round_up(len(prompt), BUCKET)


def _order(prompts: Sequence[Sequence[int]], answered: Collection[int]) -> list[int]:
    """The longest prompts last, from where they are taken first: running out of memory shows at once."""
    left = set(range(len(prompts))).difference(answered)
    return sorted(left, key=lambda index: (len(prompts[index]), -index))


def _take_group(waiting: list[int], prompts: Sequence[Sequence[int]], group: int) -> list[int]:
    """The next prompts, at most `group` and of one bucket: a prompt is always read at the same width."""
    indices = [waiting.pop()]
    while waiting and len(indices) < group and _bucket(prompts[waiting[-1]]) == _bucket(prompts[indices[0]]):
        indices.append(waiting.pop())
    return indices


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


def _pad_right(prompts: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[rows, width]`, width a multiple of BUCKET, and lengths; rows past the prompts are all padding."""
    ids = np.zeros((rows, max(map(_bucket, prompts))), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return ids, lengths
