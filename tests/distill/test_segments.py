"""Sequences packed in a row count each for themselves, in the plain objective and in the fused head."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import Head, Tokens

B, T, D, V = 4, 9, 5, 11
# The third sequence of the first row carries no loss; the last row is padding.
SEGMENTS = np.array(
    [[1, 1, 1, 2, 2, 3, 3, 4, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 2, 0, 0, 0, 0], [0] * 9], np.int32
)
MASK = (SEGMENTS > 0) & ~((SEGMENTS == 3) & (np.arange(4)[:, None] == 0)) & (np.arange(9) != 3)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"student_hidden": (B, T, D), "teacher_hidden": (B, T, D), "student": (D, V), "teacher": (D, V)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"uniforms": rng.random((B, T)).astype(np.float32)}


def by_hand(arrays, normalizer):
    """The loss and the acceptance rate in float64, a sequence at a time."""
    zq, zp = (arrays[f"{name}_hidden"].astype(float) @ arrays[name].astype(float) for name in ("student", "teacher"))
    log_q, log_p = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (zq, zp))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    tv = 0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1)
    accepted = arrays["uniforms"] < 1 - tv**2
    weight = 0.1 + 0.9 * accepted
    sequences = [MASK[b] & (SEGMENTS[b] == s) for b in range(B) for s in range(1, T) if (SEGMENTS[b] == s).any()]
    rows = [b for b in range(B) for s in range(1, T) if (SEGMENTS[b] == s).any()]
    kept = [(b, mask) for b, mask in zip(rows, sequences, strict=True) if mask.any()]
    means = [(weight * divergence)[b][mask].mean() for b, mask in kept]
    rates = [accepted[b][mask].mean() for b, mask in kept]
    pooled = (weight * divergence)[MASK].sum()
    loss = {"sequence": np.mean(means), "token": pooled / MASK.sum(), "weight": pooled / weight[MASK].sum()}
    return loss[normalizer], np.mean(rates), len(kept)


def sums_of(arrays, normalizer, how, segments=SEGMENTS):
    objective = distill.Objective(verifier=partial(selection.spec_k, k=2), floor=0.1, normalizer=normalizer)
    if how == "plain":
        zq, zp = (arrays[f"{name}_hidden"] @ arrays[name] for name in ("student", "teacher"))
        return objective(jnp.asarray(zq), jnp.asarray(zp), MASK, arrays["uniforms"], segment_ids=segments)
    return distill.fused_head(
        objective,
        arrays["student_hidden"],
        Head(arrays["student"]),
        arrays["teacher_hidden"],
        Head(arrays["teacher"]),
        Tokens(MASK, arrays["uniforms"], segment_ids=segments),
        chunk_size=5,
    )


@pytest.mark.parametrize("how", ["plain", "fused"])
@pytest.mark.parametrize("normalizer", ["sequence", "token", "weight"])
def test_each_sequence_counts_once(arrays, normalizer, how):
    sums = sums_of(arrays, normalizer, how)
    loss, rate, count = by_hand(arrays, normalizer)
    assert float(sums.mean) == pytest.approx(loss, rel=1e-5)
    assert float(sums.sequences) == count == 6
    assert sums.means()["tar"] == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_on_a_mesh(arrays, kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))

    def gradient(hidden, arrays, segments):
        return jax.grad(lambda h: sums_of(arrays | {"student_hidden": h}, "sequence", "fused", segments).mean)(hidden)

    expected = gradient(jnp.asarray(arrays["student_hidden"]), arrays, SEGMENTS)
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(value, everywhere if name in ("student", "teacher") else rows)
            for name, value in arrays.items()
        }
        found = jax.jit(gradient)(placed["student_hidden"], placed, jax.device_put(SEGMENTS, rows))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("how", ["plain", "fused"])
def test_each_sequence_has_a_skew_of_its_own(arrays, how):
    """SKL(p, q) = KL(p, a p + (1 - a) q) in float64, a that of the sequence."""
    skews = np.where(SEGMENTS > 0, 0.1 + 0.07 * SEGMENTS + 0.02 * np.arange(B)[:, None], 0.0).astype(np.float32)
    zq, zp = (arrays[f"{name}_hidden"].astype(float) @ arrays[name].astype(float) for name in ("student", "teacher"))
    q, p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (zq, zp))
    mixed = skews[..., None] * p + (1 - skews[..., None]) * q
    expected = (p * np.log(p / mixed)).sum(-1)[MASK].mean()
    objective = distill.Objective(losses.skew_kl, selection.accept_all, normalizer="token")
    if how == "plain":
        logits = [jnp.asarray(z, jnp.float32) for z in (zq, zp)]
        sums = objective(*logits, MASK, segment_ids=SEGMENTS, alpha=skews)
    else:
        heads = Head(arrays["student"]), Head(arrays["teacher"])
        tokens = Tokens(MASK, alpha=skews, segment_ids=SEGMENTS)
        hidden = arrays["student_hidden"], arrays["teacher_hidden"]
        sums = distill.fused_head(objective, hidden[0], heads[0], hidden[1], heads[1], tokens, chunk_size=5)
    assert float(sums.mean) == pytest.approx(expected, rel=1e-5)


def test_what_does_not_go_with_segments_is_refused(arrays):
    objective = distill.Objective(losses.skew_kl)
    logits = jnp.zeros((B, T, V))
    with pytest.raises(InputError, match="alpha is one skew per row"):
        objective(logits, logits, MASK, segment_ids=SEGMENTS, alpha=jnp.full(B, 0.1))
    with pytest.raises(InputError, match="segment_ids .* mask"):
        objective(logits, logits, MASK, segment_ids=SEGMENTS[:, :4])
    with pytest.raises(InputError, match=r"segment_ids must be in \[0, 9\]"):
        objective(logits, logits, MASK, segment_ids=SEGMENTS + 9)
    with pytest.raises(TypeError, match="segment_ids must be integers"):
        objective(logits, logits, MASK, segment_ids=SEGMENTS.astype(np.float32))
