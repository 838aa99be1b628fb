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
from selecttkd_jax.generation import (
    Decoder,
    Interleaver,
    KeepRule,
    Sampling,
    cache_length,
    default_dtype,
    fit_slots,
    lay_out,
    write_answers,
)
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

    Rows are written in slots that are refilled (`generation.write_answers`), all processes together: a row that ends
    early holds up none, and one that is not chosen takes no slot.

    Attributes:
        mesh: The run's.
        pair: Both architectures.
        frozen: The teacher, and what the student's adapters adapt.
        stop_ids: Where a response ends.
        longest_prompt: Tokens of the longest prompt.
        slots: Rows that are written at a time; they change no answer. None: as many as the memory has room for.
    """

    mesh: Mesh
    pair: Pair
    frozen: Frozen
    stop_ids: tuple[int, ...]
    longest_prompt: int
    slots: int | None = None

    def __call__(self, who: Role | KeepRule, sampling: Sampling) -> Rewrite:
        """A writer of one of the two models, or of both by a rule.

        Where slots follow from memory, it is what there is now: a run that resumes asks at the same place.
        """
        roles: tuple[Role, ...] = (who,) if isinstance(who, str) else ("student", "teacher")
        configs = [self._config(role) for role in roles]
        if isinstance(who, str):
            decoder = Decoder(configs[0], sampling, self.pair.vocab_size)
        else:
            decoder = Interleaver((configs[0], configs[1]), who, sampling, self.pair.vocab_size)
        length = cache_length(decoder, self.longest_prompt)
        slots = self.slots or fit_slots(self.mesh, configs, length, default_dtype(self.mesh), loaded=False)
        return partial(self._rewrite, decoder, roles, slots)

    def _rewrite(
        self,
        decoder: Decoder | Interleaver,
        roles: Sequence[Role],
        slots: int,
        state: TrainState,
        batch: Batch,
        chosen: np.ndarray,
        key: Key,
    ) -> Batch:
        rows = len(chosen)
        part, parts = process_share(self.mesh, rows)
        own = slice(part * rows // parts, (part + 1) * rows // parts)
        whole = batch if parts == 1 else jax.tree.map(gather_to_host, place_batch(self.mesh, batch, rows))
        prompts = split_prompts(whole)
        params = tuple(self._lay_out(role, state.params) for role in roles)
        answers = write_answers(
            decoder,
            params if isinstance(decoder, Interleaver) else params[0],
            [prompt.tolist() for prompt in prompts],
            stop_ids=self.stop_ids,
            key=key,
            slots=slots,
            longest_prompt=self.longest_prompt,
            answered=np.flatnonzero(~chosen).tolist(),
        )
        return replace_responses(batch, prompts[own], chosen[own], answers[own])

    def _config(self, role: Role) -> models.DecoderConfig:
        if role == "student":
            return self.pair.student
        assert self.pair.teacher is not None
        return self.pair.teacher

    def _lay_out(self, role: Role, trained: Params) -> Params:
        """The model that writes, cast and laid out once for all the tokens of a call."""
        params = trained
        if role == "teacher":
            assert self.frozen.teacher is not None
            params = self.frozen.teacher
        elif self.pair.lora is not None and self.frozen.base is not None:
            params = models.merge_lora(self.frozen.base, trained, self.pair.lora)
        return lay_out(self.mesh, self._config(role), params)


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


def write_together(
    rewrite: Rewrite, mesh: Mesh, state: TrainState, batches: Sequence[Batch], chosen: np.ndarray, keys: Sequence[Key]
) -> list[Batch]:
    """The batches of several steps, written in one call: more rows share the slots.

    Args:
        rewrite: Who writes.
        mesh: Over which the rows of a batch are spread.
        state: Whose parameters write.
        batches: This process's share of each.
        chosen: Which rows of each whole batch are written, `[steps, B]`.
        keys: Of each step: the rows' numbers are folded in.
    """
    if not chosen.any():
        return list(batches)
    steps, rows = chosen.shape
    row_keys = jnp.stack([make_row_keys(key, rows) for key in keys])
    # One after the other on each process, so process by process in the whole.
    _, parts = process_share(mesh, rows)
    order = np.arange(chosen.size).reshape(steps, parts, -1).swapaxes(0, 1).ravel()
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    written = rewrite(state, joined, chosen.ravel()[order], row_keys.ravel()[order])
    leaves, tree = jax.tree.flatten(written)
    return [tree.unflatten(parts) for parts in zip(*(np.split(leaf, steps) for leaf in leaves), strict=True)]


def replace_responses(
    batch: Batch, prompts: Sequence[np.ndarray], chosen: np.ndarray, answers: Sequence[Sequence[int]]
) -> Batch:
    """A batch whose `chosen` rows hold their prompts and the answers, cut where the row ends."""
    rows, length = batch.input_ids.shape
    texts = [
        np.concatenate([prompt, np.asarray(answer, np.int32)])[:length].astype(np.int32)
        for prompt, answer in zip(prompts, answers, strict=True)
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
