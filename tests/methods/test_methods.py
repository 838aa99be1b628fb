"""Each method against what its page says it minimises, and what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax import losses, methods, models, sources
from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Batch, batch_shapes
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.training import Frozen, Pair, init_state, make_train_step

SHAPE = {"hidden_size": 8, "mlp_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "init_scale": 0.4}
STUDENT = models.DecoderConfig(vocab_size=19, num_layers=1, **SHAPE)
TEACHER = models.DecoderConfig(vocab_size=17, num_layers=2, **SHAPE)
PAIR = Pair(student=STUDENT, teacher=TEACHER, vocab_size=17)
SHARED = ObjectiveConfig(verifier="accept_all", normalizer="token")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 17, (4, 7)).astype(np.int32)
    mask = np.arange(7)[None, :] < np.array([[6], [2], [0], [5]])
    positions = np.tile(np.arange(7, dtype=np.int32), (4, 1))
    return Batch(ids, np.roll(ids, -1, axis=1), mask, positions, np.ones((4, 7), np.int32))


@pytest.fixture(scope="module")
def params():
    return models.init_params(STUDENT, jax.random.key(2)), models.init_params(TEACHER, jax.random.key(1))


def parts(objective=SHARED, pair=PAIR):
    stored = sources.Unread(batch_shapes(4, 7))
    return methods.Parts(pair=pair, objective=objective, stored=stored, mesh=make_mesh(MeshConfig()))


def take(method, shared, batch, student, frozen, pair=PAIR):
    """The parameters after a step of plain gradient descent, and what the step says of itself."""
    loss = method.build(parts(shared, pair)).loss
    step = make_train_step(loss, optax.sgd(1.0))
    state, metrics = step(init_state(student, optax.sgd(1.0), seed=0), frozen, batch)
    return state.params, metrics["sums"].means()


def logits(config, params, batch):
    hidden, _ = models.forward(config, params, batch.input_ids, batch.positions, batch.segment_ids)
    return models.head_logits(config, params, hidden)[..., :17]


def assert_steps_along(loss, student, found):
    gradient = jax.jit(jax.grad(loss))(student)
    expected = jax.tree.map(lambda leaf, slope: leaf - slope, student, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("frozen", [Frozen(), "with a teacher"])
def test_fine_tuning_follows_the_cross_entropy_and_asks_no_teacher(batch, params, frozen):
    student, teacher = params
    # A teacher that is there for the evaluation takes no part, be it full of NaN.
    frozen = frozen if isinstance(frozen, Frozen) else Frozen(jax.tree.map(lambda leaf: leaf * jnp.nan, teacher))

    def loss(student):
        log_probs = jax.nn.log_softmax(logits(STUDENT, student, batch))
        picked = jnp.take_along_axis(log_probs, batch.labels[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(batch.loss_mask, picked, 0.0)) / np.float32(batch.loss_mask.sum())

    found, means = take(methods.Sft(), ObjectiveConfig(normalizer="token"), batch, student, frozen)
    assert_steps_along(loss, student, found)
    assert means == pytest.approx(
        {"loss": float(loss(student)), "cross_entropy": float(loss(student)), "tokens": 13}, rel=1e-5
    )


def test_fine_tuning_needs_no_teacher_at_all(batch, params):
    student, _ = params
    with_teacher, _ = take(methods.Sft(), ObjectiveConfig(), batch, student, Frozen())
    without, _ = take(methods.Sft(), ObjectiveConfig(), batch, student, Frozen(), replace(PAIR, teacher=None))
    jax.tree.map(np.testing.assert_array_equal, with_teacher, without)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_distillation_shares_the_loss_with_the_labels(batch, params, share):
    student, teacher = params

    def loss(student):
        zq, zp = logits(STUDENT, student, batch), logits(TEACHER, teacher, batch)
        terms = (1 - share) * losses.forward_kl(zq, zp) + share * losses.cross_entropy(zq, batch.labels)
        return jnp.sum(jnp.where(batch.loss_mask, terms, 0.0)) / np.float32(batch.loss_mask.sum())

    found, _ = take(methods.Kd(label_share=share), SHARED, batch, student, Frozen(teacher))
    assert_steps_along(loss, student, found)


def test_a_divergence_left_out_is_the_methods():
    assert methods.Kd().build(parts()).loss.objective.divergence is losses.forward_kl
    other = replace(SHARED, divergence="reverse_kl")
    assert methods.Kd().build(parts(other)).loss.objective.divergence is losses.reverse_kl
    # Options that go with the method's divergence are checked against it, too.
    with pytest.raises(InputError, match="objective.alpha is an option of skew_kl"):
        methods.Kd().check(replace(SHARED, alpha=0.2))


def test_fine_tuning_refuses_what_it_would_pass_over():
    with pytest.raises(InputError, match=r"no use for objective\.verifier, objective\.k"):
        methods.Sft().check(ObjectiveConfig(verifier="spec_k", k=3))
    methods.Sft().check(ObjectiveConfig(normalizer="token"))


def test_methods_are_known_by_their_names():
    assert {name: kind().name for name, kind in methods.METHODS.items()} == {name: name for name in methods.METHODS}
    for kind in methods.METHODS.values():
        assert hash(kind()) == hash(kind()) and kind() == kind()


def test_equal_methods_have_equal_losses():
    """So that the step compiles once."""
    for kind in methods.METHODS.values():
        shared = ObjectiveConfig()
        first, second = (kind().build(parts(shared)).loss for _ in range(2))
        assert first == second and hash(first) == hash(second)
