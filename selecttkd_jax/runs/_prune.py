"""Which layers of a model to keep, by what their loss does to it on calibration rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from selecttkd_jax import data, losses, models
from selecttkd_jax._array_types import Array, Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import Head, map_logits
from selecttkd_jax.progress import progress_bar
from selecttkd_jax.runs._rows import tell_rows, tokenize

Rule = Literal["even", "block", "influence", "kl"]


@dataclass(frozen=True)
class Choice:
    """The layers that a rule keeps.

    Attributes:
        layers: Which, counted from 0.
        drops: What the rule took out, in its order, with the cost of each; empty for `even`, which asks for none.
    """

    layers: tuple[int, ...]
    drops: list[models.Drop]


def choose_layers(
    pretrained: models.Pretrained,
    keep_count: int,
    rule: Rule,
    rows: data.Rows | None = None,
    *,
    vocab_size: int | None = None,
    on_drop: Callable[[models.Drop], None] = lambda drop: None,
) -> Choice:
    """Chooses which of a model's layers to keep.

    A layer that is dropped is the identity on the residual stream. What a choice costs is the mean of
    KL(full || pruned) over the response tokens of `rows`, in nats; the influence of a layer is the mean of
    1 - cos(in, out) over the positions that predict these tokens.

    Args:
        pretrained: The model.
        keep_count: How many layers to keep.
        rule: `even` distances; the best contiguous `block`; least `influence`; or greedily by `kl`.
        rows: Calibration rows, with responses; `even` needs none.
        vocab_size: Real size of the tokenizer; None counts all columns of the head.
        on_drop: Is told of each drop once it is decided.

    Raises:
        InputError: `keep_count` is not between 1 and the number of layers, or a rule that looks at rows has none.
    """
    num_layers = pretrained.config.num_layers
    models.check_keep_count(num_layers, keep_count)
    if rule == "even":
        return Choice(models.evenly_spaced_layers(num_layers, keep_count), [])
    if rows is None or not rows.response_tokens:
        raise InputError(f"rule {rule} measures on calibration rows with responses; there are none")
    batch = data.eval_batches(rows, len(rows), int(rows.lengths.max()))[0]
    if rule == "influence":
        drops = models.drop_least(keep_count, layer_influence(pretrained, batch).tolist())
        for drop in drops:
            on_drop(drop)
        return Choice(models.kept_layers(num_layers, drops), drops)
    with progress_bar("trying layers") as advance:
        cost = _counted(pruning_cost(pretrained, batch, vocab_size), advance, rule, num_layers, keep_count)
        if rule == "kl":
            drops = models.drop_greedily(num_layers, keep_count, cost, on_drop)
        else:
            drops = models.drop_block(num_layers, keep_count, cost)
            for drop in drops:
                on_drop(drop)
    return Choice(models.kept_layers(num_layers, drops), drops)


def read_calibration(config: data.DataConfig, model: str, count: int) -> tuple[data.Rows, int]:
    """The first `count` usable rows of `config.train`, as training would make them, and the tokenizer's real size.

    Raises:
        InputError: The data cannot be read, or no row has a response.
    """
    assert config.train is not None, "calibration takes one source"
    tokenizer = data.load_tokenizer(model)
    records = data.read_records(config.train, config.columns, config.train_split, skip_bad_rows=config.skip_bad_rows)
    records = [record for record in records if record.response][:count]
    if not records:
        raise InputError(f"{config.train} has no row with a response; the cost of a layer is measured on responses")
    rows = tokenize(config, records, tokenizer, data.stop_ids(tokenizer, model))
    tell_rows(rows, "calibration rows")
    return rows, data.tokenizer_size(tokenizer)


def pruning_cost(
    pretrained: models.Pretrained, batch: data.Batch, vocab_size: int | None = None
) -> Callable[[np.ndarray], float]:
    """`cost(keep [L])`: mean KL(full || pruned) over a batch's response tokens, nats; compiled once for all masks."""
    config, params = pretrained.config, pretrained.params
    full, _ = jax.jit(partial(_hidden, config))(params, batch)
    tokens = float(np.sum(batch.loss_mask))

    @jax.jit
    def summed(params: Params, full: Array, batch: data.Batch, keep: Array) -> Array:
        hidden, _ = _hidden(config, params, batch, keep=keep)
        head = Head(models.stored_head(config, params), vocab_first=config.tied_head)
        return jnp.sum(map_logits(losses.forward_kl, hidden, head, full, head, batch.loss_mask, vocab_size=vocab_size))

    return lambda keep: float(summed(params, full, batch, jnp.asarray(keep))) / tokens


def layer_influence(pretrained: models.Pretrained, batch: data.Batch) -> np.ndarray:
    """1 - cos(in, out) of each layer, the mean over the positions of `loss_mask`; [L]."""

    def distance(before: Array, after: Array) -> Array:
        norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
        far = 1 - jnp.sum(before * after, axis=-1) / norms
        return jnp.mean(far, where=batch.loss_mask)

    _, influence = jax.jit(partial(_hidden, pretrained.config, watch=distance))(pretrained.params, batch)
    return np.asarray(influence)


def _hidden(config: models.DecoderConfig, params: Params, batch: data.Batch, **options: Any) -> Any:
    return models.forward(config, params, batch.input_ids, batch.positions, batch.segment_ids, **options)


def _counted(
    cost: Callable[[np.ndarray], float], advance: Callable[[int, int], None], rule: str, num_layers: int, keep: int
) -> Callable[[np.ndarray], float]:
    """The cost, which moves the bar on whenever it is asked for."""
    total, done = models.count_tries(rule, num_layers, keep), 0

    def counted(mask: np.ndarray) -> float:
        nonlocal done
        value = cost(mask)
        done += 1
        advance(done, total)
        return value

    return counted
