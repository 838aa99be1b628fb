"""Rows of a batch as a source keeps them: whole on every process, and as text that JSON can hold."""

import base64
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from selecttkd_jax.data import Batch
from selecttkd_jax.sharding import gather_to_host, place_batch, process_share


class Text(NamedTuple):
    """A row: its tokens, -1 past their end, and where they carry loss. All else of a batch follows from these."""

    ids: np.ndarray
    mask: np.ndarray


def gather_texts(mesh: Mesh, batch: Batch, rows: int) -> list[Text]:
    """The rows of the whole batch, from each process's share of it."""
    whole = jax.tree.map(gather_to_host, place_batch(mesh, batch, rows))
    ids = np.where(whole.segment_ids > 0, whole.input_ids, -1).astype(np.int32)
    return [Text(row, mask) for row, mask in zip(ids, whole.loss_mask, strict=True)]


def take_share(mesh: Mesh, texts: Sequence[Text]) -> Batch:
    """This process's share of a batch of these rows."""
    part, parts = process_share(mesh, len(texts))
    own = texts[part * len(texts) // parts : (part + 1) * len(texts) // parts]
    ids = np.stack([text.ids for text in own])
    real = ids >= 0
    ids = np.where(real, ids, 0)
    return Batch(
        input_ids=ids,
        labels=np.pad(ids[:, 1:], ((0, 0), (0, 1))),
        loss_mask=np.stack([text.mask for text in own]),
        positions=np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(own), 1)),
        segment_ids=real.astype(np.int32),
    )


def pack_texts(texts: Sequence[Text]) -> str:
    """Rows of equal length as a string."""
    raw = np.array([[text.ids, text.mask] for text in texts], "<i4").tobytes()
    return base64.b64encode(zlib.compress(raw)).decode()


def unpack_texts(packed: str, length: int) -> list[Text]:
    """The rows of `length` tokens that `pack_texts` was given."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").reshape(-1, 2, length)
    return [Text(ids.astype(np.int32), mask.astype(bool)) for ids, mask in raw]
