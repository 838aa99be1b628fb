"""What both models write together on a mesh is what they write on one device, an int8 teacher included."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax.data import Rows, eval_batches
from selecttkd_jax.generation import KeepTopK, Sampling, interleave
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import Writers, split_prompts
from selecttkd_jax.training import Frozen, Pair

pytestmark = pytest.mark.one_stack

LENGTH, ROWS, STOPS, RULE = 24, 4, (3, 5), KeepTopK(6, block=3)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=10)
PAIR = Pair(
    student=models.DecoderConfig(44, 16, 24, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.3),
    teacher=models.DecoderConfig(42, 16, 24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.3),
    vocab_size=40,
)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    tokens = tuple(random.integers(6, 40, 7 + row).astype(np.int32) for row in range(ROWS))
    response = tuple(np.arange(7 + row) >= 3 + row for row in range(ROWS))
    return eval_batches(Rows(tokens, response, LENGTH, ROWS), ROWS, LENGTH)[0]


@pytest.mark.parametrize("in_int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2), MeshConfig(fsdp=2, tensor=2)], ids=["rows", "tensor"])
def test_a_mesh_writes_what_one_device_does(batch, mesh, in_int8):
    student, teacher = (models.init_params(config, jax.random.key(1)) for config in (PAIR.student, PAIR.teacher))
    teacher = models.quantize_int8(teacher) if in_int8 else teacher
    prompts, keys = split_prompts(batch), jax.random.split(jax.random.key(9), ROWS)
    width = max(map(len, prompts))
    ids = np.stack([np.pad(prompt, (0, width - len(prompt))) for prompt in prompts])
    mask = np.stack([np.arange(width) < len(prompt) for prompt in prompts])
    arguments = (jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(STOPS, jnp.int32), keys)
    configs = (PAIR.student, PAIR.teacher)
    options = {"rule": RULE, "sampling": SAMPLING, "vocab_size": 40}
    tokens, lengths = interleave(configs, (student, teacher), *arguments, **options)

    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        write = Writers(mesh, PAIR, Frozen(teacher=teacher), STOPS, longest_prompt=width)
        found = write(RULE, SAMPLING)(SimpleNamespace(params=student), batch, np.ones(ROWS, bool), keys)
    for row, (prompt, length) in enumerate(zip(prompts, np.asarray(lengths), strict=True)):
        written = found.input_ids[row, len(prompt) : len(prompt) + length]
        np.testing.assert_array_equal(written, np.asarray(tokens)[row, :length])
        assert found.loss_mask[row].sum() == length and found.segment_ids[row].sum() == len(prompt) + length
    assert len(set(np.asarray(lengths).tolist())) > 1
