"""The choice of layers against models that were pruned, run whole, and compared in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError

LAYERS, VOCABULARY = 4, 27
CONFIG = models.DecoderConfig(29, 12, 19, num_layers=LAYERS, num_heads=3, num_kv_heads=1, head_dim=4, init_scale=0.4)


@pytest.fixture(scope="module")
def model():
    return models.Pretrained(CONFIG, models.init_params(CONFIG, jax.random.key(0)), models.hf_config(CONFIG))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, VOCABULARY, size).astype(np.int32) for size in (9, 9, 9)]
    response = [np.arange(len(row)) >= prompt for row, prompt in zip(tokens, (4, 2, 7), strict=True)]
    return data.Rows(tokens, response, max_length=12, read=3)


def log_probs(model, row):
    logits = np.asarray(models.logits(model, row[None]))[0, :, :VOCABULARY].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def kl_of(model, rows):
    """KL(full || the model with these layers) over the response tokens of the rows, one row after the other."""

    def measure(kept):
        pruned, total, count = models.prune_layers(model, kept), 0.0, 0
        for row, response in zip(rows.tokens, rows.response, strict=True):
            full, other = log_probs(model, row), log_probs(pruned, row)
            for token in np.flatnonzero(response):
                total += float(np.sum(np.exp(full[token - 1]) * (full[token - 1] - other[token - 1])))
                count += 1
        return total / count

    return measure


def test_the_greedy_choice_is_that_of_models_pruned_one_by_one(model, rows, kl_of):
    told = []
    choice = runs.choose_layers(model, 2, "kl", rows, vocab_size=VOCABULARY, on_drop=told.append)
    left = list(range(LAYERS))
    for drop in choice.drops:
        costs = {layer: kl_of([other for other in left if other != layer]) for layer in left}
        best = min(costs, key=lambda layer: costs[layer])
        assert drop.layers == (best,)
        assert drop.cost == pytest.approx(costs[best], rel=1e-4)
        left.remove(best)
    assert choice.layers == tuple(left) and told == choice.drops


def test_the_block_is_that_of_models_pruned_one_by_one(model, rows, kl_of):
    choice = runs.choose_layers(model, 2, "block", rows, vocab_size=VOCABULARY)
    kept = [[layer for layer in range(LAYERS) if layer not in (start, start + 1)] for start in range(3)]
    assert list(choice.layers) == min(kept, key=kl_of)
    assert choice.drops[0].cost == pytest.approx(kl_of(choice.layers), rel=1e-4)


def test_influence_is_the_turn_of_the_residual_stream(model, rows):
    # A model that ends at layer l, under a final norm without a scale, ends in the direction of what goes into it.
    plain = replace(model, params=model.params | {"final_norm": {"scale": jnp.ones(12)}})
    last_hidden = jax.jit(lambda *part: models.forward(*part, jnp.ones((1, 9), jnp.int32)), static_argnums=0)
    expected = np.zeros(LAYERS)
    for row, response in zip(rows.tokens, rows.response, strict=True):
        ids = jnp.asarray(row[None])
        positions = jnp.arange(len(row))[None]
        streams = [np.asarray(model.params["embedding"])[row]]
        for depth in range(1, LAYERS + 1):
            part = models.prune_layers(plain, range(depth))
            streams.append(np.asarray(last_hidden(part.config, part.params, ids, positions)[0])[0])
        for layer in range(LAYERS):
            for token in np.flatnonzero(response) - 1:
                before, after = streams[layer][token], streams[layer + 1][token]
                expected[layer] += 1 - before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    expected /= rows.response_tokens
    batch = data.eval_batches(rows, 3, 12)[0]
    np.testing.assert_allclose(runs.layer_influence(model, batch), expected, rtol=1e-4)
    choice = runs.choose_layers(model, 3, "influence", rows)
    assert [drop.layers[0] for drop in choice.drops] == np.argsort(expected)[:1].tolist()


def test_a_rule_that_looks_at_rows_refuses_to_go_without(model, rows):
    assert runs.choose_layers(model, 2, "even").layers == (0, 3)
    for rule in ("block", "influence", "kl"):
        with pytest.raises(InputError, match=f"rule {rule} measures on calibration rows"):
            runs.choose_layers(model, 3, rule)
    with pytest.raises(InputError, match="between 1 and 4"):
        runs.choose_layers(model, 5, "kl", rows)
