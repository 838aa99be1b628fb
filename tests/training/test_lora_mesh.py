"""Adapters of a sharded student under a sharded int8 teacher, on eight devices against one."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from selecttkd_jax import losses, models, selection, training
from selecttkd_jax.data import Batch
from selecttkd_jax.distill import Objective
from selecttkd_jax.sharding import PRESETS, MeshConfig, make_mesh, place_batch
from selecttkd_jax.training import Frozen, OneStream, init_state, make_train_step, state_shardings

CONFIG = models.DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    mlp_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    qkv_bias=True,
    init_scale=0.4,
)
LORA = models.LoraConfig(rank=3, alpha=6.0, dora=True)
PAIR = training.Pair(CONFIG, CONFIG, vocab_size=45, lora=LORA)
OBJECTIVE = Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=2), floor=0.1)


def example():
    """Weights of teacher, student and adapters, as they would be in a file, and a batch."""
    teacher, base = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (1, 2))
    lora = models.init_lora(LORA, CONFIG, base, jax.random.key(3))
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda leaf: np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), np.float32), lora)
    ids = rng.integers(0, 45, (8, 7)).astype(np.int32)
    positions = np.tile(np.arange(7, dtype=np.int32), (8, 1))
    batch = Batch(ids, np.roll(ids, -1, axis=1), np.ones((8, 7), bool), positions, np.ones((8, 7), np.int32))
    return (*jax.tree.map(np.array, (teacher, base)), lora, batch)


def three_steps(mesh_config, devices, teacher, base, lora, batch):
    mesh = make_mesh(mesh_config, devices)
    optimizer = optax.sgd(0.05)
    with jax.set_mesh(mesh):
        shardings = models.shardings(CONFIG, mesh, PRESETS["fsdp+tensor"])
        teacher, base = jax.device_put((teacher, base), (shardings, shardings))
        teacher = models.quantize_int8(teacher)
        state = init_state(jax.device_put(lora, NamedSharding(mesh, PartitionSpec())), optimizer, seed=0)
        step = make_train_step(
            OneStream(PAIR, OBJECTIVE), optimizer, shardings=state_shardings(state.params, optimizer)
        )
        values = []
        for _ in range(3):
            state, metrics = step(state, Frozen(teacher, base), place_batch(mesh, batch, 8))
            values.append(float(metrics["sums"].loss / metrics["sums"].count))
    return values, state.params, teacher["layers"]["mlp"]["up"]["kernel"]["int8"]


def test_adapters_of_sharded_weights_take_the_steps_of_one_device():
    parts = example()
    expected, alone, _ = three_steps(MeshConfig(), jax.devices()[:1], *parts)
    found, spread, kernel = three_steps(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices(), *parts)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chex.assert_trees_all_close(spread, alone, rtol=1e-4, atol=1e-5)
    assert expected[2] < expected[0]
    assert kernel.dtype == jnp.int8 and kernel.addressable_shards[0].data.size == kernel.size // 4


def test_a_merge_lies_where_the_weights_lie_and_no_device_makes_the_whole_change(monkeypatch):
    _, base, lora, _ = example()
    expected = models.merge_lora(base_on(jax.devices()[:1], MeshConfig(), base), lora, LORA)
    programs = []

    def jit(function, **options):
        compiled_here = real_jit(function, **options)

        def call(*arguments):
            programs.append(compiled_here.lower(*arguments).compile().as_text())
            return compiled_here(*arguments)

        return call

    real_jit = jax.jit
    on_mesh = base_on(jax.devices(), MeshConfig(fsdp=4, tensor=2), base)
    monkeypatch.setattr(jax, "jit", jit)
    merged = models.merge_lora(on_mesh, lora, LORA)
    monkeypatch.undo()
    chex.assert_trees_all_close(merged, expected, rtol=1e-5, atol=1e-6)
    kernel, before = (tree["layers"]["mlp"]["up"]["kernel"] for tree in (merged, on_mesh))
    assert kernel.sharding == before.sharding and kernel.addressable_shards[0].data.size == kernel.size // 8
    whole = "f32[" + ",".join(map(str, kernel.shape)) + "]"
    assert len(programs) == len(LORA.targets) and not any(whole in text for text in programs)


def base_on(devices, mesh_config, base):
    mesh = make_mesh(mesh_config, devices)
    return jax.device_put(base, models.shardings(CONFIG, mesh, PRESETS["fsdp+tensor"]))
