from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax._errors import InputError

CONFIG = models.DecoderConfig(29, 12, 19, num_layers=5, num_heads=3, num_kv_heads=1, head_dim=4, init_scale=0.3)


def test_skipped_layers_leave_the_model_that_never_had_them_and_compile_nothing_anew():
    model = models.Pretrained(CONFIG, models.init_params(CONFIG, jax.random.key(0)), models.hf_config(CONFIG))
    ids = jax.random.randint(jax.random.key(1), (2, 7), 0, 29)
    positions = jnp.broadcast_to(jnp.arange(7), ids.shape)
    masked = jax.jit(
        lambda params, keep: models.forward(CONFIG, params, ids, positions, jnp.ones_like(ids), keep=keep)[0]
    )
    for keep in ([1, 3], [0, 4], [0, 1, 2, 3, 4]):
        small = models.prune_layers(model, keep)
        expected, _ = models.forward(small.config, small.params, ids, positions, jnp.ones_like(ids))
        np.testing.assert_allclose(
            masked(model.params, jnp.isin(jnp.arange(5), jnp.array(keep))), expected, rtol=1e-5, atol=1e-6
        )
    assert masked._cache_size() == 1


def random_cost(seed):
    """A cost of every set of kept layers, with no structure that a search could lean on."""
    rng = np.random.default_rng(seed)
    costs = {kept: rng.random() for count in range(7) for kept in combinations(range(6), count)}
    return lambda keep: costs[tuple(np.flatnonzero(keep).tolist())]


@pytest.mark.parametrize("seed", range(5))
def test_each_greedy_drop_is_the_best_of_all_single_ones(seed):
    cost, told = random_cost(seed), []
    drops = models.drop_greedily(6, 2, cost, told.append)
    left = list(range(6))
    for drop in drops:
        trials = {gone: cost(np.array([layer in left and layer != gone for layer in range(6)])) for gone in left}
        (gone,) = drop.layers
        assert trials[gone] == min(trials.values()) == drop.cost
        left.remove(gone)
    assert told == drops and len(drops) == 4
    assert models.kept_layers(6, drops) == tuple(left)


@pytest.mark.parametrize("seed", range(5))
def test_the_block_is_the_best_of_all_neighbours(seed):
    cost = random_cost(seed)
    (drop,) = models.drop_block(6, 3, cost)
    tried = {start: cost(np.array([not start <= layer < start + 3 for layer in range(6)])) for start in (0, 1, 2, 3)}
    assert drop.layers == tuple(range(drop.layers[0], drop.layers[0] + 3))
    assert drop.cost == tried[drop.layers[0]] == min(tried.values())


def test_a_search_asks_as_often_as_it_says():
    asked = []
    models.drop_greedily(6, 2, lambda keep: asked.append(keep) or 0.0)
    assert len(asked) == models.count_tries("kl", 6, 2) == 6 + 5 + 4 + 3
    asked.clear()
    models.drop_block(6, 2, lambda keep: asked.append(keep) or 0.0)
    assert len(asked) == models.count_tries("block", 6, 2) == 3


def test_nothing_is_dropped_where_all_are_kept():
    for rule, drops in (("kl", models.drop_greedily(4, 4, float)), ("block", models.drop_block(4, 4, float))):
        assert drops == [] and models.count_tries(rule, 4, 4) == 0
    assert models.drop_least(2, [0.3, 0.1]) == []


@pytest.mark.parametrize("keep", [0, 5])
def test_too_many_and_too_few_are_refused(keep):
    for search in (models.drop_greedily, models.drop_block):
        with pytest.raises(InputError, match="between 1 and 4"):
            search(4, keep, float)
    with pytest.raises(InputError, match="between 1 and 4"):
        models.drop_least(keep, [0.1] * 4)
