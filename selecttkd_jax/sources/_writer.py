"""Text that a model writes during training: the prompts of a batch, continued."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax import models
from selecttkd_jax._array_types import Key, Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, Rows, eval_batches
from selecttkd_jax.generation import BUCKET, KeepRule, Sampling, decode, interleave, lay_out
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share
from selecttkd_jax.training import Frozen, Pair, TrainState

Role = Literal["student", "teacher"]
"""Which of the two models writes."""
Rewrite = Callable[[TrainState, Batch, np.ndarray, Key], Batch]
"""`rewrite(state, batch, chosen, key) -> batch`: the responses of the `chosen` rows `[B]` of the whole batch are
written anew; `batch` is this process's share of it, before and after. Each row draws with a key of its own: `key [B]`,
or one key with the row's number folded in."""
MakeWriter = Callable[[Role | KeepRule, Sampling], Rewrite]
"""Makes a writer of one of the two models, or of both by a rule (`generation.interleave`)."""


@dataclass(frozen=True)
class Writers:
    """What it takes to let the student, the teacher or both write; called with whom and how, gives a `Rewrite`.

    Attributes:
        mesh: The run's.
        pair: Both architectures.
        frozen: The teacher, and what the student's adapters adapt.
        stop_ids: Where a response ends.
        longest_prompt: Tokens of the longest prompt.
    """

    mesh: Mesh
    pair: Pair
    frozen: Frozen
    stop_ids: tuple[int, ...]
    longest_prompt: int

    def __call__(self, who: Role | KeepRule, sampling: Sampling) -> Rewrite:
        """A writer of one of the two models, or of both by a rule."""
        return partial(self._rewrite, who, sampling)

    def _rewrite(
        self, who: Role | KeepRule, sampling: Sampling, state: TrainState, batch: Batch, chosen: np.ndarray, key: Key
    ) -> Batch:
        prompts, rows = split_prompts(batch), len(chosen)
        part, parts = process_share(self.mesh, rows)
        own = slice(part * rows // parts, (part + 1) * rows // parts)

        # Every process writes its share, in shapes that never change.
        width = -(-self.longest_prompt // BUCKET) * BUCKET
        ids, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
        for row, prompt in enumerate(prompts):
            if chosen[own][row]:
                ids[row, : len(prompt)] = prompt
                mask[row, : len(prompt)] = True
        row_keys = key if key.ndim else make_row_keys(key, rows)
        numbers = np.asarray(jax.device_get(jax.random.key_data(row_keys)))[own]
        ids, mask, numbers = place_batch(self.mesh, (ids, mask, numbers), rows)
        roles: tuple[Role, ...] = (who,) if isinstance(who, str) else ("student", "teacher")
        configs, params = zip(*(self._model(role, state.params) for role in roles), strict=True)
        tokens, lengths = _write(
            configs,
            params,
            ids,
            mask,
            jnp.asarray(self.stop_ids, jnp.int32),
            numbers,
            key_kind=jax.random.key_impl(key),
            sampling=sampling,
            vocab_size=self.pair.vocab_size,
            rule=None if isinstance(who, str) else who,
        )
        tokens, lengths = gather_to_host(tokens)[own], gather_to_host(lengths)[own]
        return replace_responses(batch, prompts, chosen[own], tokens, lengths)

    def _model(self, role: Role, trained: Params) -> tuple[models.DecoderConfig, Params]:
        """The model that writes, cast and laid out once for all the tokens of a batch."""
        if role == "teacher":
            assert self.pair.teacher is not None and self.frozen.teacher is not None
            config, params = self.pair.teacher, self.frozen.teacher
        else:
            config, params = self.pair.student, trained
            if self.pair.lora is not None and self.frozen.base is not None:
                params = models.merge_lora(self.frozen.base, trained, self.pair.lora)
        return config, lay_out(self.mesh, config, params)


def unwritten(who: Role | KeepRule, sampling: Sampling) -> Rewrite:
    """Stands in for `Writers` where a step is only compiled."""
    del who, sampling

    def refuse(state: TrainState, batch: Batch, chosen: np.ndarray, key: Key) -> Batch:
        raise InputError("a plan compiles a step and lets nobody write")

    return refuse


def split_prompts(batch: Batch) -> list[np.ndarray]:
    """The tokens of each row before its last response, or of a prompt alone: what a model continues."""
    ids, mask, counts = np.asarray(batch.input_ids), np.asarray(batch.loss_mask), np.sum(batch.segment_ids, axis=1)
    begins = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    # Logits at a position predict the next token, so the prompt ends with the position itself.
    ends = begins.shape[1] - np.argmax(begins[:, ::-1], axis=1)
    return [row[:end] for row, end in zip(ids, np.where(mask.any(axis=1), ends, counts), strict=True)]


def replace_responses(
    batch: Batch, prompts: Sequence[np.ndarray], chosen: np.ndarray, tokens: np.ndarray, lengths: np.ndarray
) -> Batch:
    """A batch whose `chosen` rows hold their prompts and the responses `tokens[:lengths]`, cut where the row ends."""
    rows, length = batch.input_ids.shape
    texts = [
        np.concatenate([prompt, answer[:size]])[:length].astype(np.int32)
        for prompt, answer, size in zip(prompts, tokens, lengths, strict=True)
    ]
    response = [np.arange(len(text)) >= len(prompt) for text, prompt in zip(texts, prompts, strict=True)]
    (written,) = eval_batches(Rows(tuple(texts), tuple(response), length, rows), rows, length)
    return jax.tree.map(
        lambda old, new: np.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, np.asarray(old)), batch, written
    )


@partial(jax.jit, static_argnames="rows")
def make_row_keys(key: Key, rows: int) -> Key:
    """A key for each row of a batch, whatever process holds it."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


@partial(jax.jit, static_argnames=("configs", "key_kind", "sampling", "vocab_size", "rule"))
def _write(configs, params, ids, mask, stop_ids, numbers, *, key_kind, sampling, vocab_size, rule):
    """`decode`, or `interleave` under a rule, with the keys that `numbers` are the data of."""
    arguments = (ids, mask, stop_ids, jax.random.wrap_key_data(numbers, impl=key_kind))
    if rule is None:
        return decode(configs[0], params[0], *arguments, sampling=sampling, vocab_size=vocab_size)
    return interleave(configs, params, *arguments, rule=rule, sampling=sampling, vocab_size=vocab_size)
