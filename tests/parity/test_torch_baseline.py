"""The PyTorch baseline of experiments/torch_baseline against the library: training runs, and the loss by itself."""

import ast
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from models.tiny_models import LLAMA, QWEN2, random_tensors, write_model

from selecttkd_jax import selection

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import ours  # noqa: E402
import selecttkd_torch  # noqa: E402
import train  # noqa: E402
from job import DIVERGENCES, NORMALIZERS, Settings  # noqa: E402

B, T, V = 3, 19, 97
STEPS = 5
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": V}
# Everything that changes a step does so here: the norm is clipped, the matrices decay, the rate rises and falls.
OPTIMIZER = {"learning_rate": 1e-3, "warmup_fraction": 0.4, "weight_decay": 0.5, "clip_norm": 0.1}
RUNS = {
    "greedy": (LLAMA, Settings(divergence="reverse_kl", verifier="greedy_top_k", k=5, floor=0.01, **OPTIMIZER)),
    "spec_k": (
        QWEN2,
        Settings(divergence="skew_kl", verifier="spec_k_expected", k=2, floor=0.1, normalizer="token", **OPTIMIZER),
    ),
}
rng = np.random.default_rng(0)
TEACHER_LOGITS = rng.normal(0, 2, (B, T, V)).astype(np.float32)
STUDENT_LOGITS = (0.6 * TEACHER_LOGITS + rng.normal(0, 1.5, (B, T, V))).astype(np.float32)
MASK = np.arange(T) < np.array([[19], [7], [0]])


def batches():
    """Padded rows; the last of each batch has no response."""
    ids = rng.integers(0, V, (STEPS, B, T), dtype=np.int32)
    lengths = np.array([[T], [11], [8]])
    place = np.broadcast_to(np.arange(T, dtype=np.int32), ids.shape)
    real = place < lengths
    mask = (place >= 3) & (place < lengths - 1) & (np.arange(B) < 2)[:, None]
    return {
        "input_ids": np.where(real, ids, 0),
        "labels": np.roll(np.where(real, ids, 0), -1, axis=-1),
        "loss_mask": mask,
        "positions": place,
        "segment_ids": real.astype(np.int32),
    }


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("lenient_promotion")
def test_five_training_steps_agree(tmp_path, name):
    config, settings = RUNS[name]
    config = config | SIZES
    tensors = random_tensors(config)
    noise = random_tensors(config, seed=1)
    write_model(tmp_path / "teacher", config, tensors)
    write_model(tmp_path / "student", config, {key: tensors[key] + 0.5 * noise[key] for key in tensors})
    job = (tmp_path / "teacher", tmp_path / "student", batches(), settings)
    expected, found = list(train.train(*job)), list(ours.train(*job))
    for measure in ("loss", "tar", "grad_norm"):
        values = [[record[measure] for record in records] for records in (found, expected)]
        np.testing.assert_allclose(*values, rtol=1e-4, err_msg=measure)
    for one, other in zip(found, expected, strict=True):
        assert one.get("verdicts") == other.get("verdicts")
        assert 0.05 < one["tar"] < 0.95  # the verifier has something to decide
        assert one["grad_norm"] > OPTIMIZER["clip_norm"]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_and_its_gradient_agree(divergence, normalizer):
    settings = Settings(divergence=divergence, alpha=0.2, k=3, floor=0.1, normalizer=normalizer)
    logits = torch.tensor(STUDENT_LOGITS, requires_grad=True)
    expected = train.make_loss(settings)(logits, torch.tensor(TEACHER_LOGITS), torch.tensor(MASK))
    expected.loss.backward()

    def loss(student_logits):
        sums = ours.make_objective(settings)(student_logits, TEACHER_LOGITS, MASK)
        return sums.loss / sums.count, sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(STUDENT_LOGITS)
    np.testing.assert_allclose(value, expected.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5 * logits.grad.abs().max().item())
    np.testing.assert_allclose(sums.accepted_fraction / sums.sequences, expected.tar.item(), rtol=1e-6)


def test_flat_positions_are_one_sequence():
    settings = Settings(divergence="skew_kl")
    flat = [torch.tensor(array[MASK]) for array in (STUDENT_LOGITS, TEACHER_LOGITS)]
    every = torch.ones(MASK.sum(), dtype=torch.bool)
    whole = [torch.tensor(array) for array in (STUDENT_LOGITS, TEACHER_LOGITS, MASK)]
    pooled = train.make_loss(Settings(divergence="skew_kl", normalizer="token"))(*whole)
    torch.testing.assert_close(train.make_loss(settings)(*flat, every).loss, pooled.loss)


def test_candidates_are_accepted_as_often_as_the_closed_form_says():
    draws, k = 20_000, 3
    student, teacher = (torch.tensor(array[0, :4]) for array in (STUDENT_LOGITS, TEACHER_LOGITS))
    generator = torch.Generator().manual_seed(0)
    many = (logits.expand(draws, -1, -1) for logits in (student, teacher))
    found = selecttkd_torch.spec_k(*many, k=k, generator=generator).float().mean(0)
    expected = selecttkd_torch.spec_k_acceptance(student, teacher, k=k)
    assert (0.2 < expected).all() and (expected < 0.999).all()
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs() < 4 * deviation).all()
    np.testing.assert_allclose(expected, selection.spec_k(student.numpy(), teacher.numpy(), k=k), rtol=1e-5)


def test_the_drawn_loss_is_the_expected_one_on_average():
    # Every draw is a sequence of its own, so the mean over sequences is the mean over draws.
    draws = 2_000
    student, teacher = (torch.tensor(array[:1]) for array in (STUDENT_LOGITS, TEACHER_LOGITS))
    mask = torch.ones((1, T), dtype=torch.bool)
    settings = {"divergence": "skew_kl", "k": 2, "floor": 0.1}
    expected = train.make_loss(Settings(**settings, verifier="spec_k_expected"))(student, teacher, mask)
    many = (tensor.expand(draws, -1, -1) for tensor in (student, teacher))
    found = train.make_loss(Settings(**settings, verifier="spec_k"))(*many, mask.expand(draws, -1))
    terms = 0.9 * selecttkd_torch.skew_kl(student, teacher)
    deviation = (terms.square() * expected.accepted * (1 - expected.accepted)).sum().sqrt() / T / draws**0.5
    assert (found.loss - expected.loss).abs() < 4 * deviation
    np.testing.assert_allclose(found.tar, expected.tar, atol=4 * 0.5 / (draws * T) ** 0.5)


def test_given_uniforms_decide_alike_in_both():
    uniforms = np.random.default_rng(3).random((B, T), np.float32)
    verify = partial(selecttkd_torch.spec_k, k=2, uniforms=torch.tensor(uniforms))
    found = verify(torch.tensor(STUDENT_LOGITS), torch.tensor(TEACHER_LOGITS)).numpy()
    acceptance = selection.spec_k(STUDENT_LOGITS, TEACHER_LOGITS, k=2)
    np.testing.assert_array_equal(found, selection.token_weights(acceptance, uniforms).accepted)
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("module", [selecttkd_torch, train])
def test_the_baseline_imports_nothing_of_the_library(module):
    tree = ast.parse(Path(module.__file__).read_text())
    named = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert named and not [line for line in named if "selecttkd_jax" in line or "jax" in line.split()]
