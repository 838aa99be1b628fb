"""One step of every method's loss, value and gradient of all weights, against transformers and PyTorch's autograd.

The loss of each method is written here once more, from its equation, on the logits of transformers' models; divergences
and verifiers are those of the PyTorch baseline, which shares no code with the library. `on_policy` meets TRL's own
function, too (`make_trl_divergences.py`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_models import LLAMA, QWEN2, random_tensors, write_model
from safetensors.numpy import load_file

from selecttkd_jax import methods, models
from selecttkd_jax.data import Batch, Responses, batch_shapes
from selecttkd_jax.distill import Head, ObjectiveConfig, Tokens, fused_head
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import Unread
from selecttkd_jax.training import Frozen, Pair

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import selecttkd_torch as oracle  # noqa: E402

B, T, V = 4, 13, 61
SIZES = {"num_hidden_layers": 2, "hidden_size": 24, "vocab_size": V}
STEP, STEPS = 6, 8
GREEDY = ObjectiveConfig(verifier="greedy_top_k", k=3, floor=0.1)
OFF = ObjectiveConfig(verifier="accept_all")
DRAWN = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05, normalizer="token")
TOLERANCE = 1e-5


# --- What every method is given ---


def make_batch(seed, lengths):
    """Padded rows with a prompt of three tokens; the third has no response."""
    ids = np.random.default_rng(seed).integers(0, V, (B, T), dtype=np.int32)
    place = np.broadcast_to(np.arange(T, dtype=np.int32), ids.shape)
    real = place < np.array(lengths)[:, None]
    ids = np.where(real, ids, 0)
    mask = (place >= 2) & (place < np.array(lengths)[:, None] - 1) & (np.arange(B) != 2)[:, None]
    labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    return Batch(ids, labels, mask, np.array(place), real.astype(np.int32))


BATCH, OTHER = make_batch(0, [13, 9, 6, 11]), make_batch(1, [8, 13, 7, 10])
BY_STUDENT = np.array([True, False, True, False])[:, None]
HALF_WRITTEN = replace(BATCH, labels=np.where(BY_STUDENT, -1, BATCH.labels))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same two models in both libraries."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("models")
    found = {}
    for seed, (role, config) in enumerate({"student": LLAMA | SIZES, "teacher": QWEN2 | SIZES}.items()):
        path = write_model(directory / role, config, random_tensors(config, seed=seed))
        torch_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        found[role] = SimpleNamespace(ours=models.from_pretrained(path), torch=torch_model.eval(), directory=path)
    return SimpleNamespace(**found)


# --- The equations ---


def jensen_shannon(q, p, beta):
    log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
    log_m = torch.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
    return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)


def skewed(q, p, alpha):
    """DistiLLM-2's SKL, with a skew for each row."""
    mixture = alpha * p.softmax(-1) + (1 - alpha) * q.softmax(-1)
    return (p.softmax(-1) * (p.log_softmax(-1) - mixture.log())).sum(-1)


def skewed_reverse(q, p, alpha, detach):
    """Its SRKL, whose mixture the release detaches."""
    mixture = (1 - alpha) * p.softmax(-1) + alpha * (q.detach() if detach else q).softmax(-1)
    return (q.softmax(-1) * (q.log_softmax(-1) - mixture.log())).sum(-1)


def cross_entropy(q, labels):
    return torch.nn.functional.cross_entropy(q.movedim(-1, 1), torch.tensor(labels).long(), reduction="none")


def hard(q, p, labels):
    """ImitKD's: the data's token on the data's rows, the teacher's first choice on the student's."""
    return cross_entropy(q, torch.where(torch.tensor(BY_STUDENT), p.argmax(-1), torch.tensor(labels).long()).numpy())


def select(shared, divergence, logits, batch, uniforms):
    """The mean of V D over a batch."""
    verify = {
        "accept_all": oracle.accept_all,
        "greedy_top_k": partial(oracle.greedy_top_k, k=shared.k),
        "spec_k": partial(oracle.spec_k, k=shared.k, uniforms=torch.tensor(np.array(uniforms))),
    }[shared.verifier]
    mask = torch.tensor(batch.loss_mask)
    return oracle.selective_loss(*logits(batch), mask, divergence, verify, shared.floor, shared.normalizer).loss


def on_one(divergence, share=0.0, labels=None):
    """(1 - r) V D + r CE."""

    def loss(shared, logits, batch, uniforms):
        total = (1 - share) * select(shared, divergence, logits, batch, uniforms)
        if not share:
            return total
        mean = {"sequence": oracle.mean_of_sequences, "token": oracle.mean_of_tokens}[shared.normalizer]
        return total + share * mean(cross_entropy(logits(batch)[0], batch.labels), torch.tensor(batch.loss_mask))

    return loss


def on_labels(shared, logits, batch, uniforms):
    mean = {"sequence": oracle.mean_of_sequences, "token": oracle.mean_of_tokens}[shared.normalizer]
    return mean(cross_entropy(logits(batch)[0], batch.labels), torch.tensor(batch.loss_mask))


def on_two(on_teacher, on_student, balance):
    """2 (1 - b) on the teacher's text + 2 b on the student's; both have as many rows that count."""

    def loss(shared, logits, batch, uniforms):
        first = select(shared, on_teacher, logits, batch.teacher, uniforms[0])
        return 2 * (1 - balance) * first + 2 * balance * select(shared, on_student, logits, batch.student, uniforms[1])

    return loss


SKL, SRKL = partial(skewed, alpha=0.1), partial(skewed_reverse, alpha=0.1, detach=True)
PAIRS = Responses(teacher=BATCH, student=OTHER)
TWO, SKEWS = methods.DistiLlm2, np.array([0.01, 0.1, 0.05, 0.02], np.float32)
REVERSE = partial(skewed_reverse, alpha=0.1, detach=False)
# Where two losses are equal, they are one compiled program.
CASES = {
    "kd": (methods.Kd(), GREEDY, BATCH, on_one(oracle.forward_kl)),
    "kd, labels": (methods.Kd(label_share=0.5), DRAWN, BATCH, on_one(oracle.forward_kl, share=0.5)),
    "sft": (methods.Sft(), ObjectiveConfig(normalizer="token"), BATCH, on_labels),
    "seqkd": (methods.SeqKd(), ObjectiveConfig(normalizer="token"), BATCH, on_labels),
    "seqkd, logits": (methods.SeqKd(learn_from="logits"), GREEDY, BATCH, on_one(oracle.forward_kl)),
    "imitkd": (methods.ImitKd(), GREEDY, BATCH, on_one(oracle.forward_kl)),
    "imitkd, hard": (methods.ImitKd(labels="hard"), GREEDY, HALF_WRITTEN, on_one(partial(hard, labels=BATCH.labels))),
    "gkd": (methods.Gkd(), replace(DRAWN, beta=0.9), BATCH, on_one(partial(jensen_shannon, beta=0.9))),
    "on_policy": (methods.OnPolicyKd(), OFF, BATCH, on_one(oracle.reverse_kl)),
    "distillm": (methods.DistiLlm(), GREEDY, BATCH, on_one(SKL)),
    "distillm, reverse": (methods.DistiLlm(), replace(DRAWN, divergence="skew_reverse_kl"), BATCH, on_one(REVERSE)),
    # Step 6 of 8, in two epochs: past the middle of training; e/E + t/T = 3/2; (e - 1)/E + t/(E T) = 3/4.
    "distillm2": (TWO(), OFF, PAIRS, on_two(SKL, SRKL, 0.5)),
    "distillm2, released": (
        TWO(on_teacher="skew_reverse_kl", on_student="skew_kl", balance="released"),
        GREEDY,
        PAIRS,
        on_two(SRKL, SKL, 0.75),
    ),
    "distillm2, published": (
        TWO(on_teacher="skew_reverse_kl", balance="published", epochs=2, detach_mixture=False),
        GREEDY,
        PAIRS,
        on_two(REVERSE, REVERSE, 1.0),
    ),
    "distillm2, a skew for each row": (
        TWO(adaptive_alpha="released"),
        OFF,
        replace(PAIRS, teacher_alpha=SKEWS, student_alpha=SKEWS[::-1].copy()),
        on_two(
            partial(skewed, alpha=torch.tensor(SKEWS)[:, None, None]),
            partial(skewed_reverse, alpha=torch.tensor(SKEWS).flip(0)[:, None, None], detach=True),
            0.5,
        ),
    ),
    "distillm2, smooth": (
        TWO(on_student="skew_kl", balance="smooth", epochs=2),
        replace(GREEDY, alpha=0.2),
        PAIRS,
        on_two(partial(skewed, alpha=0.2), partial(skewed, alpha=0.2), 0.75),
    ),
}


@partial(jax.jit, static_argnums=0)
def step(loss, params, teacher, batch, draws):
    def mean(params):
        sums = loss(params, Frozen(teacher), batch, draws, jnp.int32(STEP))
        return sums.loss / sums.count

    return jax.value_and_grad(mean)(params)


def test_every_method_of_this_page_is_compared():
    compared = {case[0].name for case in CASES.values()}
    assert compared >= {"kd", "sft", "seqkd", "imitkd", "gkd", "on_policy", "distillm", "distillm2"}


@pytest.mark.parametrize("name", CASES)
def test_a_step_has_the_loss_and_the_gradient_of_its_equation(pair, name, tmp_path):
    method, shared, batch, equation = CASES[name]
    student, teacher = pair.student.ours, pair.teacher.ours
    parts = methods.Parts(
        pair=Pair(student=student.config, teacher=teacher.config, vocab_size=V),
        objective=shared,
        stored=Unread(batch_shapes(B, T)),
        mesh=make_mesh(MeshConfig()),
        steps=STEPS,
    )
    loss = method.build(parts).loss
    draws = loss.draw(jax.random.key(7), batch)
    value, gradient = step(loss, student.params, teacher.params, batch, draws)
    models.save_pretrained(tmp_path / "gradient", replace(student, params=gradient))

    def logits(rows):
        inputs = {"input_ids": torch.tensor(rows.input_ids), "attention_mask": torch.tensor(rows.segment_ids)}
        with torch.no_grad():
            of_teacher = pair.teacher.torch(**inputs).logits
        return pair.student.torch(**inputs).logits, of_teacher

    pair.student.torch.zero_grad()
    expected = equation(shared, logits, batch, draws)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=TOLERANCE, atol=TOLERANCE)
    found = load_file(tmp_path / "gradient" / "model.safetensors")
    for path, weight in pair.student.torch.named_parameters():
        largest = max(1.0, weight.grad.abs().max().item())
        np.testing.assert_allclose(found[path], weight.grad.numpy(), atol=TOLERANCE * largest, rtol=0, err_msg=path)


@pytest.mark.parametrize(
    ("beta", "divergence"),
    [("0.0", "forward_kl"), ("0.3", "jensen_shannon"), ("0.5", "jensen_shannon"), ("1.0", "reverse_kl")],
)
def test_on_policy_minimises_what_trl_does(beta, divergence):
    """TRL's `DistillationTrainer`, whose default is beta = 1: reverse KL, the mean over all response tokens."""
    trl = np.load(Path(__file__).with_name("trl_divergences.npz"))
    options = {"beta": float(beta)} if divergence == "jensen_shannon" else {}
    named = ObjectiveConfig(verifier="accept_all", normalizer="token", **options, divergence=divergence)
    if beta == "1.0":
        named = replace(named, divergence=None)  # the method's own
    mesh, small = (
        make_mesh(MeshConfig()),
        models.DecoderConfig(23, 4, 4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4),
    )
    small = Pair(student=small, teacher=small, vocab_size=23)
    parts = methods.Parts(pair=small, objective=named, stored=Unread(batch_shapes(3, 7)), mesh=mesh)
    objective = methods.OnPolicyKd().build(parts).loss.objective

    def mean(hidden, head):
        heads = Head(head, vocab_first=True), Head(trl["teacher_head"], vocab_first=True)
        sums = fused_head(objective, hidden, heads[0], trl["teacher_hidden"], heads[1], Tokens(trl["mask"]))
        return sums.loss / sums.count

    value, gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(trl["student_hidden"], trl["student_head"])
    np.testing.assert_allclose(value, trl[f"{beta}/loss"], rtol=TOLERANCE)
    for found, expected in zip(gradients, (trl[f"{beta}/hidden"], trl[f"{beta}/head"]), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
