"""The step compiled for a GPU with its attention kernel. Only where the compiler is installed (gpu-plan)."""

import json
from dataclasses import replace
from functools import lru_cache

import jax
import pytest
from planning.conftest import STUDENT, TEACHER

from selecttkd_jax import models, planning, runs
from selecttkd_jax._packed_rows import most_texts
from selecttkd_jax.planning._estimate import sweep_rounds
from selecttkd_jax.planning._timeline import part_of
from selecttkd_jax.runs._specs import choose_attention
from selecttkd_jax.sharding import make_mesh

LENGTH = 1024


@pytest.fixture(scope="module")
def wide(config, tmp_path_factory):
    """The tiny run on one GPU, with heads as wide as the kernel takes and rows that are longer than anything else."""
    root = tmp_path_factory.mktemp("wide")
    for name, decoder in (("teacher", TEACHER), ("student", STUDENT)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(models.hf_config(replace(decoder, head_dim=64))))
    names = replace(config.models, teacher=str(root / "teacher"), student=str(root / "student"))
    return replace(config, models=names, mesh=replace(config.mesh, fsdp=1))


@pytest.fixture(scope="module")
def compiled(wide):
    """The step and its costs, by attention, rows, their length and what they hold; each compiled once."""
    pytest.importorskip("jax_cuda12_plugin")
    target = planning.parse_target("gpu:h100:1")

    @lru_cache
    def compile_once(attention, rows=8, length=LENGTH, packing="off"):
        data = replace(wide.data, batch_size=rows, max_length=length, packing=packing)
        config = replace(wide, data=data, models=replace(wide.models, attention=attention))
        with jax.numpy_dtype_promotion("standard"):
            step = planning.compile_step(config, runs.abstract_pair(config), planning.target_devices(target))
        return step, planning.estimate(config, target, step)

    return compile_once


def attention_kernels(step):
    """How often each kernel of cuDNN runs, by its name."""
    found = {}
    for _, instruction, times in step.program.executed(sweep_rounds(0)):
        if "__cudnn$fmha" in instruction.attributes:
            kind = "backward" if "Backward" in instruction.attributes else "forward"
            found[kind] = found.get(kind, 0) + times
            assert part_of(instruction) == "attention"
    return found


def widest_in_length(step):
    """How many axes of LENGTH an array has, at most."""
    shapes = (shape for _, instruction, _ in step.program.executed() for shape in instruction.shapes)
    return max(shape.sizes.count(LENGTH) for shape in shapes)


@pytest.mark.parametrize("packing", ["off", "rows"])
def test_nothing_is_as_large_as_the_square_of_a_row(compiled, packing):
    step, _ = compiled("cudnn", packing=packing)
    assert widest_in_length(step) == 1
    assert widest_in_length(compiled("xla")[0]) == 2


@pytest.mark.parametrize("packing", ["off", "rows"])
def test_each_layer_runs_its_kernels_once(compiled, packing):
    """The teacher's forward, and the student's forward, which is computed again for the backward pass, and that."""
    step, _ = compiled("cudnn", packing=packing)
    assert attention_kernels(step) == {
        "forward": TEACHER.num_layers + 2 * STUDENT.num_layers,
        "backward": STUDENT.num_layers,
    }


@pytest.mark.parametrize("packing", ["off", "rows"])
def test_memory_and_time_grow_with_tokens_and_not_with_the_length_of_rows(compiled, packing):
    short, _ = compiled("cudnn", packing=packing)
    long, costs = compiled("cudnn", rows=1, length=8 * LENGTH, packing=packing)
    # Where rows are packed the kernel keeps a sum of exponentials for each text that there may be, and padding's.
    sums = {rows: 4 * STUDENT.num_heads * 8 * LENGTH * (most_texts(8 * LENGTH // rows) + 1) for rows in (1, 8)}
    grown = sums[1] - sums[8] if packing == "rows" else 0
    assert long.memory.peak == pytest.approx(short.memory.peak + grown, rel=0.02)
    _, dense = compiled("xla", rows=1, length=8 * LENGTH)
    assert costs.timeline.busy < 0.45 * dense.timeline.busy


def test_a_gpu_that_cannot_packs_rows_into_plain_products(wide):
    pytest.importorskip("jax_cuda12_plugin")
    devices = planning.target_devices(planning.parse_target("gpu:a100-80gb:1"))
    mesh, pair = make_mesh(wide.mesh, devices), runs.abstract_pair(wide)
    assert runs.choose_packing(wide, pair, mesh).data.packing == "off"
    packed = replace(wide, data=replace(wide.data, packing="rows"))
    assert choose_attention(packed, pair, mesh).attention == "xla"
