"""What eight devices exchange in a step when weights are sharded over `fsdp`, against the least that this takes."""

import json
from dataclasses import replace

import jax
import pytest

from selecttkd_jax import models, planning, runs
from selecttkd_jax.sharding import MeshConfig

# Wide enough that weights, not a batch of 512 tokens, are what is exchanged.
TEACHER = models.DecoderConfig(
    vocab_size=512, hidden_size=128, mlp_size=512, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32
)
STUDENT = replace(TEACHER, hidden_size=96, mlp_size=320, num_layers=2)


@pytest.fixture(scope="module")
def wide(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("wide")
    for name, decoder in (("teacher", TEACHER), ("student", STUDENT)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(models.hf_config(decoder)))
    # float32 throughout: XLA turns bfloat16 into float32 on a CPU, so bytes would say nothing.
    return replace(
        config,
        models=replace(
            config.models,
            teacher=str(root / "teacher"),
            student=str(root / "student"),
            teacher_dtype="float32",
            compute_dtype="float32",
        ),
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_weights_are_gathered_once_each_way_and_gradients_summed_once(wide, micro_batches):
    config = replace(
        wide,
        mesh=MeshConfig(fsdp=8),
        training=replace(wide.training, micro_batches=micro_batches),
        data=replace(wide.data, batch_size=16 * micro_batches),
    )
    target = planning.parse_target("cpu:8")
    with jax.numpy_dtype_promotion("standard"):
        step = planning.compile_step(config, runs.abstract_pair(config), planning.target_devices(target))
    moved = planning.estimate(config, target, step).traffic
    gathered = sum(traffic.payload for (kind, _), traffic in moved.items() if kind == "all-gather")
    summed = sum(traffic.payload for (kind, _), traffic in moved.items() if kind in ("all-reduce", "reduce-scatter"))
    teacher, student = models.count_params(TEACHER), models.count_params(STUDENT)
    # The teacher once, the student forward and backward. Less: rows of the embeddings are exchanged, not the tables.
    assert 0.75 < gathered / (micro_batches * 4 * (teacher + 2 * student)) < 1.15
    assert 0.75 < summed / (micro_batches * 4 * student) < 1.15
    # Rows of the embeddings there, and of their gradient back.
    exchanged = sum(traffic.payload for (kind, _), traffic in moved.items() if kind == "all-to-all")
    rows = micro_batches * 2 * config.data.max_length
    assert exchanged <= 1.15 * 4 * rows * (TEACHER.hidden_size + 2 * STUDENT.hidden_size)
