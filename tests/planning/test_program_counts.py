"""Operations and traffic read from compiled programs, against numbers worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax.planning._collectives import collective_traffic
from selecttkd_jax.planning._estimate import sweep_rounds
from selecttkd_jax.planning._hlo import once, parse
from selecttkd_jax.planning._targets import Device
from selecttkd_jax.planning._timeline import lay_out_timeline

LAYERS, ROWS, WIDTH = 5, 24, 56


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))


def compiled(function, mesh, *arguments):
    """The program of `function` on arguments given as (shape, spec)."""
    with jax.set_mesh(mesh):
        shapes = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
            for shape, spec in arguments
        )
        return parse(jax.jit(function).lower(*shapes).compile().as_text())


def matmul_flops(program, rounds=once):
    return lay_out_timeline(program, Device("cpu", memory=1), 1, rounds).flops


def test_a_scanned_layer_counts_as_often_as_it_runs(mesh):
    def loss(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0])

    program = compiled(jax.grad(loss), mesh, ((LAYERS, WIDTH, WIDTH), ()), ((ROWS, WIDTH), ("fsdp",)))
    forward = LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert matmul_flops(program).total() == 3 * forward / 8


def test_a_batched_product_counts_every_pair(mesh):
    program = compiled(partial(jnp.einsum, "BTD,BSD->BTS"), mesh, ((8, 6, 10), ("fsdp",)), ((8, 7, 10), ("fsdp",)))
    assert matmul_flops(program).total() == 2 * 8 * 6 * 7 * 10 / 8


TPU_PRODUCTS = """
HloModule products

ENTRY %main (a: bf16[96,40], b: bf16[24,40], c: f32[8,6,10], d: f32[8,10,7]) -> f32[8,6,7] {
  %a = bf16[96,40]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[24,40]{1,0:T(8,128)(2,1)} parameter(1)
  %product.1 = bf16[96,24]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_oi->bf, metadata={op_name="x"}
  %c = f32[8,6,10]{2,1,0:T(8,128)} parameter(2)
  %d = f32[8,10,7]{2,1,0:T(8,128)} parameter(3)
  ROOT %product.2 = f32[8,6,7]{2,1,0} convolution(%c, %d), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, \
dim_labels=0bf_0io->0bf
}
"""


def test_products_that_a_tpu_writes_as_convolutions():
    flops = matmul_flops(parse(TPU_PRODUCTS))
    assert flops == {"bf16": 2 * 96 * 24 * 40, "f32": 2 * 8 * 6 * 7 * 10}


# What jax.grad of causal attention becomes for an H100: rows 2, query heads 16, key heads 8, 128 tokens, size 64.
CUDNN_ATTENTION = """
HloModule attention

ENTRY %main (q: bf16[2,128,16,64], k: bf16[2,128,8,64], v: bf16[2,128,8,64]) -> bf16[2,16,128,64] {
  %q = bf16[2,128,16,64]{3,2,1,0} parameter(0)
  %k = bf16[2,128,8,64]{3,2,1,0} parameter(1)
  %v = bf16[2,128,8,64]{3,2,1,0} parameter(2)
  %fwd = (bf16[2,16,128,64]{3,1,2,0}, f32[2,16,128]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %v), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"mask_type": "MASK"}}
  %mixed = bf16[2,16,128,64]{3,1,2,0} get-tuple-element(%fwd), index=0
  %sums = f32[2,16,128]{2,1,0} get-tuple-element(%fwd), index=1
  %bwd = (bf16[2,16,128,64]{3,1,2,0}, bf16[2,8,128,64]{3,1,2,0}, bf16[2,8,128,64]{3,1,2,0}, u8[0]{0}) \
custom-call(%q, %k, %v, %sums, %mixed, /*index=5*/%mixed), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config": {"mask_type": "MASK"}}
  ROOT %dq = bf16[2,16,128,64]{3,1,2,0} get-tuple-element(%bwd), index=0
}
"""


def test_attention_that_a_gpu_writes_as_one_call():
    product = 2 * (2 * 16) * 128 * 128 * 64
    assert matmul_flops(parse(CUDNN_ATTENTION.replace("MASK", "NO_MASK"))) == {"bf16": (2 + 5) * product}
    causal = CUDNN_ATTENTION.replace("MASK", "CAUSAL")
    for text in (causal, causal.replace(": ", ":"), causal.replace("CAUSAL", "PADDING_CAUSAL")):
        assert matmul_flops(parse(text)) == {"bf16": (2 + 5) * product // 2}


def test_traffic_of_each_kind(mesh):
    @partial(jax.shard_map, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"))
    def talk(x):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True)
        return part * jax.lax.psum(jnp.cos(part), "fsdp") + jax.lax.ppermute(part, "fsdp", [(0, 1), (1, 0)])

    traffic = collective_traffic(compiled(talk, mesh, ((ROWS, WIDTH), ("fsdp",))), 8)
    whole = ROWS * WIDTH * 4
    assert {kind: (moved.count, moved.payload, moved.sent) for (kind, _), moved in traffic.items()} == {
        "all-gather": (1, whole, whole * 7 / 8),
        "reduce-scatter": (1, whole, whole * 7 / 8),
        "all-reduce": (1, whole / 8, 2 * whole / 8 * 7 / 8),
        "collective-permute": (1, whole / 8, whole / 8),
    }
    assert {group for _, group in traffic} == {8}


def test_traffic_inside_a_loop_counts_each_round(mesh):
    @partial(jax.shard_map, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"))
    def talk(x):
        return jax.lax.fori_loop(0, LAYERS, lambda _, x: x * jnp.sin(jax.lax.psum(x, "fsdp")), x)

    traffic = collective_traffic(compiled(talk, mesh, ((ROWS, WIDTH), ("fsdp",))), 8)
    assert traffic["all-reduce", 8].count == LAYERS


SPLASH_ATTENTION = """
ENTRY %main (q: bf16[2,6,256,64], k: bf16[2,2,256,64]) -> bf16[2,6,256,64] {
  %q = bf16[2,6,256,64]{3,2,1,0} parameter(0)
  %k = bf16[2,2,256,64]{3,2,1,0} parameter(1)
  %splash_mha_KERNEL_segmented.1 = bf16[2,6,256,64]{3,2,1,0} custom-call(%k, %q, %k), \
custom_call_target="tpu_custom_call"
  ROOT %copy = bf16[2,6,256,64]{3,2,1,0} copy(%splash_mha_KERNEL_segmented.1)
}
"""


@pytest.mark.parametrize(("kernel", "products"), [("fwd", 2), ("dkv", 4), ("dq", 3)])
def test_attention_of_a_tpu_counts_half_of_its_products(kernel, products):
    timeline = lay_out_timeline(parse(SPLASH_ATTENTION.replace("KERNEL", kernel)), Device("tpu", memory=1), 1)
    assert timeline.parts["attention"].flops == {"bf16": products * 2 * (2 * 6 * 256 * 256 * 64) / 2}


# How each spelling divides eight devices: the first group, and whether it crosses hosts of four.
GROUPS = {
    "replica_groups={{0,1,2,3},{4,5,6,7}}": (4, False),
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": (2, True),
    "replica_groups=[4,2]<=[8]": (2, False),
    "replica_groups=[2,4]<=[4,2]T(1,0)": (4, True),
    "replica_groups=[4,2]<=[2,4]T(1,0)": (2, True),
    "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_1','axis_2'}": (8, True),
    "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_2'}": (4, False),
    "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_1'}": (2, True),
    "replica_groups={}": (8, True),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_each_spelling_of_groups(groups):
    text = (
        "ENTRY %main (x: f32[16]) -> f32[16] {\n  %x = f32[16]{0} parameter(0)\n"
        f"  ROOT %sum = f32[16]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add\n}}\n"
        "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n"
    )
    size, crosses = GROUPS[groups]
    (key, moved), *others = collective_traffic(parse(text), 8, per_host=4).items()
    assert key == ("all-reduce", size) and not others
    assert moved.sent_between_hosts == (moved.sent if crosses else 0)
    # Of a host's four adapters, those of the group's members there carry it.
    assert moved.host_load == (moved.sent * 4 / (size / 2) if crosses else 0)


def test_a_sum_of_which_a_part_is_taken_is_a_reduce_scatter():
    text = (
        "%all-reduce-scatter.3 (input: f32[16]) -> f32[4] {\n  %input = f32[16]{0} parameter(0)\n"
        "  %sum = f32[16]{0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add\n"
        "  %start = s32[] constant(0)\n"
        "  ROOT %part = f32[4]{0} dynamic-slice(%sum, %start), dynamic_slice_sizes={4}\n}\n"
        "ENTRY %main (x: f32[16]) -> f32[4] {\n  %x = f32[16]{0} parameter(0)\n"
        "  ROOT %fusion = f32[4]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3\n}\n"
        "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n"
    )
    ((key, moved),) = collective_traffic(parse(text), 4).items()
    assert key == ("reduce-scatter", 4) and (moved.payload, moved.sent) == (64, 48)


def test_the_start_of_a_gather_is_counted_once_and_its_end_is_not():
    text = (
        "ENTRY %main (x: bf16[16]) -> bf16[64] {\n  %x = bf16[16]{0} parameter(0)\n"
        "  %start = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}\n"
        "  ROOT %done = bf16[64]{0} all-gather-done(%start)\n}\n"
    )
    moved = collective_traffic(parse(text), 4)["all-gather", 4]
    assert (moved.count, moved.payload, moved.sent) == (1, 128, 96)


def test_a_loop_of_unknown_rounds_takes_the_number_given(mesh):
    def turn(x, weight, count):
        return jax.lax.fori_loop(0, count[0].astype(jnp.int32), lambda _, x: jnp.tanh(x @ weight), x)

    program = compiled(turn, mesh, ((ROWS, WIDTH), ()), ((WIDTH, WIDTH), ()), ((1,), ()))
    product = 2 * ROWS * WIDTH * WIDTH
    assert matmul_flops(program).total() == product
    assert matmul_flops(program, lambda loop: 3).total() == 3 * product


UNROLLED = """
HloModule unrolled

%body (state: (u32[], f32[4])) -> (u32[], f32[4]) {
  %state = (u32[], f32[4]{0}) parameter(0)
  %counter = u32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %first = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %second = f32[4]{0} collective-permute(%first), source_target_pairs={{0,1},{1,0}}
  %two = u32[] constant(2)
  %grown = u32[] add(%counter, %two)
  ROOT %next = (u32[], f32[4]{0}) tuple(%grown, %second)
}

%condition (tested: (u32[], f32[4])) -> pred[] {
  %tested = (u32[], f32[4]{0}) parameter(0)
  %reached = u32[] get-tuple-element(%tested), index=0
  %limit = u32[] constant(7)
  ROOT %less = pred[] compare(%reached, %limit), direction=LT
}

ENTRY %main (start: (u32[], f32[4])) -> (u32[], f32[4]) {
  %start = (u32[], f32[4]{0}) parameter(0)
  ROOT %loop = (u32[], f32[4]{0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_compiler_that_takes_two_rounds_together_goes_round_half_as_often():
    moved = collective_traffic(parse(UNROLLED), 2)["collective-permute", 2]
    assert (moved.count, moved.payload) == (2 * 4, 2 * 4 * 16)  # counters 0, 2, 4 and 6


@pytest.mark.parametrize("positions", [1000, 1024, 130])
def test_the_fused_heads_loops_visit_all_positions(positions):
    def rounds(scope):
        text = f'%loop = (s32[]) while(%x), condition=%c, body=%b, metadata={{op_name="jit(step)/{scope}/while"}}'
        instruction = parse(f"ENTRY %main (x: s32[]) -> s32[] {{\n  {text}\n}}\n").computations["main"].instructions[0]
        return sweep_rounds(positions)(instruction)

    assert 256 * rounds("whole_256_of_256") + 40 * rounds("rest_40_of_256") >= positions
    assert 256 * rounds("whole_256_of_256") + 40 * rounds("rest_40_of_256") < positions + 40
    assert rounds("kept_64_of_256") == 4
