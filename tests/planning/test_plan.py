"""A plan of a tiny run: its numbers against formulas, its tables, its answers to what does not fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from planning.conftest import STUDENT, TEACHER

from selecttkd_jax import models, planning, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.cli import main
from selecttkd_jax.methods import DistiLlm2, MiniLlm, SpeculativeKd
from selecttkd_jax.planning import _command as command
from selecttkd_jax.planning import _search as search
from selecttkd_jax.planning._targets import GIB
from selecttkd_jax.runs import save_config
from selecttkd_jax.sharding import make_mesh


def changed(config, **sections):
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in sections.items()})


def compiled(config, target="cpu:8"):
    target = planning.parse_target(target)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        step = planning.compile_step(config, runs.abstract_pair(config), planning.target_devices(target))
    return step, planning.estimate(config, target, step)


def product_flops(decoder, rows, length):
    """Operations of a forward pass without the head: 2 for each weight and token, and 4 T H E for attention."""
    tokens = rows * length
    heads = decoder.num_heads * decoder.head_dim
    kv_heads = decoder.num_kv_heads * decoder.head_dim
    weights = decoder.hidden_size * (2 * heads + 2 * kv_heads + 3 * decoder.mlp_size)
    return decoder.num_layers * tokens * (2 * weights + 4 * length * heads)


@pytest.fixture(scope="module")
def fsdp(config):
    return compiled(config)


def test_weights_and_optimizer_where_nothing_is_sharded(config):
    step, costs = compiled(changed(config, mesh={"data": -1, "fsdp": 1}))
    assert step.mesh == {"data": 8, "fsdp": 1, "tensor": 1}
    assert step.memory.teacher == 2 * models.count_params(TEACHER)
    assert step.memory.student == 4 * models.count_params(STUDENT)
    # Two moments, and the step twice: Adam counts, and so does the schedule.
    assert step.memory.optimizer == 8 * models.count_params(STUDENT) + 8
    assert {kind for kind, _ in costs.traffic} == {"all-reduce"}


@pytest.mark.parametrize(
    ("method", "arrays"), [(SpeculativeKd(), 17), (MiniLlm(pretraining=1.0), 17 + 12 + 17)], ids=["skd", "minillm"]
)
def test_methods_by_which_both_models_write_are_planned_with_the_batch_their_loss_takes(config, method, arrays):
    """Rollouts have three numbers more a token, and the stored rows beside them.

    A token of a stored row is four integers and a byte of mask. Only cross-entropy looks at the labels among them, so
    a release of jax may leave those of a method without it out of the step's arguments.
    """
    tokens = config.data.batch_size * config.data.max_length // 8
    step_and_key = 4 + 8
    batch = compiled(replace(config, method=method))[0].memory.batch - step_and_key
    assert batch == arrays * tokens or (method.name == "speculative_kd" and batch == (arrays - 4) * tokens)


@pytest.mark.one_stack
@pytest.mark.usefixtures("lenient_promotion")
def test_skews_of_rows_that_share_sequences_are_planned_token_by_token(config):
    """The shapes are those that a run's packer hands over, and the step can be traced with them."""
    method = DistiLlm2(adaptive_alpha="released")
    packed = replace(config, method=method, data=replace(config.data, packing="rows"))
    mesh = make_mesh(config.mesh, jax.devices("cpu")[:1])
    step, specs = runs.specify_step(packed, runs.abstract_pair(packed), mesh)
    for skews in (specs.batch.teacher_alpha, specs.batch.student_alpha):
        assert (skews.shape, skews.dtype) == ((16, config.data.max_length), jnp.float32)
    with jax.set_mesh(mesh):
        jax.eval_shape(step, specs.state, specs.frozen, specs.batch)


def test_adapters_of_a_frozen_student_and_a_teacher_in_int8(config):
    adapted = replace(config, lora=models.LoraConfig(rank=4, targets=("q_proj", "down_proj")))
    frozen = {"teacher_dtype": "int8", "student_dtype": "bfloat16"}
    memory = compiled(changed(adapted, models=frozen, mesh={"data": -1, "fsdp": 1}))[0].memory
    heads = STUDENT.num_heads * STUDENT.head_dim
    adapters = STUDENT.num_layers * 4 * (STUDENT.hidden_size + heads + STUDENT.mlp_size + STUDENT.hidden_size)
    assert memory.student == 2 * models.count_params(STUDENT) + 4 * adapters
    assert memory.optimizer == 8 * adapters + 8
    # A byte for each weight of the layers' kernels instead of two, and a scale of four bytes for each of their outputs.
    heads, kv_heads = (count * TEACHER.head_dim for count in (TEACHER.num_heads, TEACHER.num_kv_heads))
    outputs = heads + 2 * kv_heads + TEACHER.hidden_size + 2 * TEACHER.mlp_size + TEACHER.hidden_size
    kernels = TEACHER.hidden_size * (2 * heads + 2 * kv_heads + 3 * TEACHER.mlp_size)
    saved = TEACHER.num_layers * (kernels - 4 * outputs)
    assert memory.teacher == 2 * models.count_params(TEACHER) - saved


def test_weights_sharded_over_fsdp_take_an_eighth_each(fsdp):
    step, costs = fsdp
    # All but norm scales and biases, which every device has.
    assert 2 * models.count_params(TEACHER) / 8 < step.memory.teacher < 2 * models.count_params(TEACHER) / 8 + 2000
    assert step.memory.optimizer == 2 * step.memory.student + 8
    gathered = sum(moved.payload for (kind, _), moved in costs.traffic.items() if kind == "all-gather")
    assert gathered > models.count_params(TEACHER)


def test_operations_are_those_of_the_formula(fsdp, config):
    rows, length = config.data.batch_size // 8, config.data.max_length
    head = 2 * rows * length * TEACHER.vocab_size
    teacher = product_flops(TEACHER, rows, length) + head * TEACHER.hidden_size
    student = 3 * product_flops(STUDENT, rows, length) + 3 * head * STUDENT.hidden_size
    # What the backward pass computes anew: one of attention's two products, in each layer of the student.
    anew = STUDENT.num_layers * rows * length * 2 * length * STUDENT.num_heads * STUDENT.head_dim
    assert fsdp[1].flops.total() == pytest.approx(teacher + student + anew, rel=0.01)


def test_micro_batches_and_recomputation_trade_memory_for_time(fsdp, config):
    step, costs = fsdp
    parts, parts_costs = compiled(
        changed(config, data={"batch_size": 64}, training={"micro_batches": 4}, models={"remat": "full"})
    )
    layers = product_flops(STUDENT, 8, config.data.max_length)
    assert parts_costs.flops.total() == pytest.approx(4 * costs.flops.total() + layers, rel=0.05)
    assert parts.memory.peak < 1.5 * step.memory.peak  # with four times the rows


def test_a_cpu_has_no_stated_rates(fsdp):
    assert fsdp[1].step_seconds is None and fsdp[1].tokens_per_second is None


def test_a_step_takes_its_kernels_one_after_the_other_and_its_collectives(fsdp, config):
    step, costs = fsdp
    device = planning.parse_target("gpu:h100:8").device
    timed = planning.estimate(config, replace(planning.parse_target("cpu:8"), device=device), step)
    # So small a step is bound by memory, kernel by kernel, and a CPU's collectives wait.
    assert timed.timeline.busy == pytest.approx(timed.memory_bytes / 3352e9, rel=0.01)
    assert timed.timeline.links == pytest.approx(sum(moved.sent for moved in costs.traffic.values()) / 450e9)
    assert timed.timeline.exposed == pytest.approx(timed.timeline.links)
    assert timed.step_seconds == timed.timeline.busy + timed.timeline.exposed
    assert {"teacher", "student", "attention", "head", "optimizer"} <= set(timed.timeline.parts)
    assert timed.tokens_per_second == pytest.approx(16 * 32 / timed.step_seconds)


@pytest.fixture
def config_file(config, tmp_path):
    save_config(config, tmp_path / "config.toml")
    return str(tmp_path / "config.toml")


def test_the_command_prints_tables(config_file, capsys, fsdp, monkeypatch):
    monkeypatch.setattr(command, "compile_step", lambda config, pair, devices: fsdp[0])
    assert main(["plan", config_file, "--target", "cpu:8", "--no-search", "--data.max_length", "32"]) == 0
    out = capsys.readouterr().out
    for words in ("batch 16 x 32 tokens", "| peak (0% of", "| all-gather", "| teacher's layers", "| all of it"):
        assert words in out


def test_what_does_not_fit_is_said_and_gives_another_exit_code(config_file, capsys, monkeypatch):
    def compile_step(config, pair, devices):
        raise planning.TooLargeError("it wants 96 G of 16 G")

    for module in (command, search):
        monkeypatch.setattr(module, "compile_step", compile_step)
    assert main(["plan", config_file, "--target", "cpu:8"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: it wants 96 G" in out and out.count("none fits") == 2


@pytest.mark.usefixtures("lenient_promotion")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "tpu:v5x:2x2"], "did you mean 'v5"),
        (["--target", "cpu:8", "--data.batch_size", "9"], "multiple of 8"),
        (["--target", "cpu:4", "--mesh.fsdp", "8"], "needs 8 devices"),
        (["--target", "cpu:8", "--models.teacher", "nobody/nothing"], "nobody/nothing is neither a directory"),
        (["--target", "cpu:8", "--data.rows", "9"], "--data.rows"),
        (["--target", "cpu:8", "--mesh.xla_flags", "xla_nonsense=true"], "No such compile option: 'xla_nonsense'"),
        ([], "--target"),
    ],
)
def test_mistakes_are_answered_in_one_line(config_file, capsys, words, said):
    assert main(["plan", config_file, *words, "--no-search"]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0] and not out


@pytest.mark.parametrize(("module", "target"), [("libtpu", "tpu:v5e:2x4"), ("jax_cuda12_plugin", "gpu:a100-80gb:8")])
def test_accelerators_get_the_same_step(fsdp, config, module, target):
    """Only where their compilers are installed: the same weights and products, on devices that are not here."""
    pytest.importorskip(module)
    step, costs = compiled(config, target)
    assert step.memory.teacher == fsdp[0].memory.teacher
    # A TPU looks up so small an embedding by a product with one-hot rows, in both models.
    one_hot = 2 * 64 * TEACHER.vocab_size * (TEACHER.hidden_size + STUDENT.hidden_size) if module == "libtpu" else 0
    assert costs.flops.total() == pytest.approx(fsdp[1].flops.total() + one_hot, rel=0.001)
    assert costs.step_seconds is not None and 0 < costs.step_seconds < 1


@pytest.mark.parametrize(("module", "target"), [("libtpu", "tpu:v5e:2x4"), ("jax_cuda12_plugin", "gpu:a100-80gb:8")])
def test_accelerators_say_what_does_not_fit(config, module, target):
    pytest.importorskip(module)
    large = changed(config, data={"batch_size": 2**17, "max_length": 2**10})
    try:
        step, _ = compiled(large, target)
    except planning.TooLargeError as error:
        assert "HBM" in str(error) or "memory" in str(error)
    else:
        assert step.memory.peak > planning.parse_target(target).device.usable_memory > 10 * GIB


def test_a_shape_that_no_machine_has():
    pytest.importorskip("libtpu")
    with pytest.raises(InputError, match="target tpu:v5p:3x3x3"):
        planning.target_devices(planning.parse_target("tpu:v5p:3x3x3"))
