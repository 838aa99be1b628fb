"""What kernels read and write, and when they and collectives run, in programs written out by hand."""

import pytest

from selecttkd_jax.planning._hlo import parse
from selecttkd_jax.planning._kernels import kernel_work
from selecttkd_jax.planning._targets import Device
from selecttkd_jax.planning._timeline import lay_out_timeline, part_of

# A byte a second, ten operations a second in 16 bits and five in 32, and two bytes a second between devices.
SLOW = Device("gpu", memory=1, flops=10.0, flops_float32=5.0, memory_rate=1.0, link_rate=2.0, hosts_rate=2.0)


def work_of(text, name, entry="main"):
    program = parse(text)
    computation = program.computations[entry]
    return kernel_work(program, computation, computation.by_name[name])


FUSIONS = """
%slices (a: f32[100,8], b: f32[8], i: s32[]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,8}
  %flat = f32[8]{0} bitcast(%row)
  ROOT %sum = f32[8]{0} add(%flat, %b)
}

%twice (a: f32[100,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,8}
  ROOT %sum = f32[100,8]{1,0} add(%a, %a)
}

%puts (a: f32[100,8], b: f32[1,8], i: s32[]) -> (f32[100,8], f32[1,8]) {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %put = f32[100,8]{1,0} dynamic-update-slice(%a, %b, %i, %zero)
  ROOT %both = (f32[100,8]{1,0}, f32[1,8]{1,0}) tuple(%put, %b)
}

%scatters (a: f32[100,8], i: s32[3,1], b: f32[3,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  %b = f32[3,8]{1,0} parameter(2)
  ROOT %put = f32[100,8]{1,0} scatter(%a, %i, %b), update_window_dims={1}, to_apply=%pick
}

%outer (a: f32[100,8], i: s32[]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[8]{0} constant({...})
  ROOT %inner = f32[8]{0} fusion(%a, %one, %i), kind=kLoop, calls=%slices
}

ENTRY %main (a: f32[100,8], b: f32[8], r: f32[1,8], u: f32[3,8], i: s32[], n: s32[3,1]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %r = f32[1,8]{1,0} parameter(2)
  %u = f32[3,8]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %n = s32[3,1]{1,0} parameter(5)
  %near = f32[100,8]{1,0:T(8,128)S(1)} parameter(6)
  %taken = f32[8]{0} fusion(%a, %b, %i), kind=kLoop, calls=%slices
  %nested = f32[8]{0} fusion(%a, %i), kind=kLoop, calls=%outer
  %whole = f32[100,8]{1,0} fusion(%a, %i), kind=kLoop, calls=%twice
  %put = (f32[100,8]{1,0}, f32[1,8]{1,0}) fusion(%a, %r, %i), kind=kLoop, calls=%puts
  %scattered = f32[100,8]{1,0} fusion(%a, %n, %u), kind=kInput, calls=%scatters
  %prefetched = f32[8]{0} fusion(%near, %b, %i), kind=kLoop, calls=%slices
  %product = (f32[100,100]{1,0}, s8[4194304]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %updated = f32[100,8]{1,0} dynamic-update-slice(%a, %r, %i, %i)
  %copied = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]) copy-start(%a)
  ROOT %end = f32[8]{0} copy(%b)
}
"""
ROW, WHOLE = 4 * 8, 4 * 800


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("taken", ROW + ROW + 4 + ROW),  # a row, the other operand, the index; and a row out
        ("nested", ROW + 4 + ROW),  # through a fusion within the fusion
        ("whole", WHOLE + 4 + WHOLE),  # all of it, though a row is taken, too
        ("put", ROW + 4 + 2 * ROW),  # the array is changed where it is
        ("scattered", 3 * ROW + 3 * 4 + 3 * ROW),
        ("prefetched", ROW + 4 + ROW),  # what is on the chip already is not read from memory
        ("product", 2 * WHOLE + 4 * 100 * 100),  # without the library's scratch space
        ("updated", 2 * ROW),
        ("copied", WHOLE),  # read from memory, and kept on the chip
        ("end", 2 * ROW),
    ],
)
def test_bytes_of_a_kernel(name, moved):
    assert work_of(FUSIONS, name).moved == moved


def test_products_of_a_kernel_count_by_dtype():
    assert work_of(FUSIONS, "product").flops == {"f32": 2 * 100 * 100 * 8}
    assert not work_of(FUSIONS, "taken").flops


# A gather runs beside a kernel of 80 seconds and takes 96 bytes / 2 = 48; another one is waited for at once.
OVERLAPPED = """
%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], f32[10]{0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %x = f32[10]{0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %grown = s32[] add(%counter, %one)
  %made = f32[10]{0} negate(%x), metadata={op_name="jit(step)/jvp(student)/while/body/transpose(jvp(attention))/neg"}
  ROOT %next = (s32[], f32[10]{0}) tuple(%grown, %made)
}

%condition (tested: (s32[], f32[10])) -> pred[] {
  %tested = (s32[], f32[10]{0}) parameter(0)
  %reached = s32[] get-tuple-element(%tested), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%reached, %limit), direction=LT
}

%few (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %same = f32[10]{0} copy(%x)
}

%many (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  %once = f32[10]{0} copy(%x)
  ROOT %twice = f32[10]{0} copy(%once)
}

ENTRY %main (x: bf16[16], y: f32[10], which: pred[]) -> f32[10] {
  %x = bf16[16]{0} parameter(0)
  %y = f32[10]{0} parameter(1)
  %which = pred[] parameter(2)
  %start = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %kernel = f32[10]{0} negate(%y), metadata={op_name="jit(step)/teacher/while/body/neg"}
  %gathered = bf16[64]{0} all-gather-done(%start)
  %sum = f32[10]{0} all-reduce(%kernel), replica_groups={{0,1,2,3}}, to_apply=%add
  %late = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %short = f32[2]{0} slice(%y), slice={[0:2]}, metadata={op_name="jit(step)/optimizer/slice"}
  %waited = bf16[64]{0} all-gather-done(%late)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[10]{0}) tuple(%zero, %sum)
  %loop = (s32[], f32[10]{0}) while(%begin), condition=%condition, body=%body, metadata={op_name="jit(step)/head/while"}
  %left = f32[10]{0} get-tuple-element(%loop), index=1
  ROOT %chosen = f32[10]{0} conditional(%which, %left, %left), true_computation=%few, false_computation=%many
}
"""


def test_collectives_run_beside_kernels_and_what_is_waited_for_is_exposed():
    timeline = lay_out_timeline(parse(OVERLAPPED), SLOW, devices=4)
    reduced = 2 * 40 * 3 / 4 / 2  # twice 3/4 of 40 bytes
    gathered = 3 / 4 * 128 / 2
    assert timeline.links == 2 * gathered + reduced
    # The first gather is covered by 80 seconds; the second one by the 16 of a slice; the sum by nothing.
    assert timeline.exposed == reduced + gathered - 16
    assert timeline.seconds == timeline.busy + timeline.exposed


def test_kernels_belong_to_the_innermost_part_and_run_as_often_as_their_loop():
    parts = lay_out_timeline(parse(OVERLAPPED), SLOW, devices=4).parts
    assert {name: part.seconds for name, part in parts.items()} == {
        "teacher": 80,
        "optimizer": 16,
        "attention": 5 * 80,
        "head": 5 * 12,  # the loop's counter, of which nothing is said but where the loop was written
        "other": 2 * 80,  # the slower of the two branches
    }
    assert parts["attention"].kernels == 5


def test_a_product_takes_as_long_as_its_units_need_where_that_is_longer():
    text = (
        "ENTRY %main (x: DTYPE[10,30], y: DTYPE[30,10]) -> DTYPE[10,10] {\n"
        "  %x = DTYPE[10,30]{1,0} parameter(0)\n  %y = DTYPE[30,10]{1,0} parameter(1)\n"
        "  ROOT %dot = DTYPE[10,10]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n}\n"
    )
    narrow, wide = (lay_out_timeline(parse(text.replace("DTYPE", dtype)), SLOW, 1) for dtype in ("bf16", "f32"))
    assert narrow.seconds == max(2 * 700, 6000 / 10) and wide.seconds == max(4 * 700, 6000 / 5)
    fast = Device("gpu", memory=1, flops=10.0, flops_float32=5.0, memory_rate=1e9)
    assert lay_out_timeline(parse(text.replace("DTYPE", "bf16")), fast, 1).seconds == 600
    assert lay_out_timeline(parse(text.replace("DTYPE", "f32")), fast, 1).seconds == 1200


def test_names_of_weights_are_no_parts():
    text = (
        "ENTRY %main (x: f32[4]) -> f32[4] {\n  %x = f32[4]{0} parameter(0)\n"
        "  ROOT %copy = f32[4]{0} copy(%x), metadata={op_name=\"frozen.teacher['layers']['attention']['o']\"}\n}\n"
    )
    assert part_of(parse(text).computations["main"].by_name["copy"]) is None
