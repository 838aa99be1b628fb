"""A state on a mesh: master weights and moments are sharded as the parameters are, before anything is computed."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from selecttkd_jax import models, sharding
from selecttkd_jax.training import OptimizerConfig, init_state, make_optimizer

CONFIG = models.DecoderConfig(
    vocab_size=40, hidden_size=16, mlp_size=24, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=6, qkv_bias=True
)
OPTIMIZERS = {
    "adamw, clipped, masked": make_optimizer(OptimizerConfig(weight_decay=0.1), 10),
    "sgd": optax.sgd(0.1, momentum=0.9),
}


@pytest.fixture(scope="module")
def placed():
    params = models.init_params(CONFIG, jax.random.key(0), jnp.bfloat16)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=4))
    return jax.device_put(params, models.shardings(CONFIG, mesh, sharding.PRESETS["fsdp+tensor"]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_moments_lie_like_their_parameters(placed, optimizer):
    state = init_state(placed, optimizer, seed=5)
    suffixes = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(placed)}
    moments = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        like = [param for suffix, param in suffixes.items() if name.endswith(suffix) and ".key" not in name]
        if not like:
            assert leaf.shape == () and leaf.sharding.spec == PartitionSpec(), name
            continue
        moments += "opt_state" in name
        assert leaf.sharding == like[0].sharding and leaf.dtype == jnp.float32, name
    assert moments == len(suffixes) * (2 if len(jax.tree.leaves(state)) > 2 * len(suffixes) + 3 else 1)


def test_the_callers_arrays_stay_valid(placed):
    state = init_state(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), placed), optax.sgd(1.0), seed=0)
    single = models.init_params(CONFIG, jax.random.key(0))
    alone = init_state(single, optax.sgd(1.0), seed=0)
    jax.tree.map(lambda leaf: leaf.delete(), (state.params, alone.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((placed, single)))
    jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 1, single))
