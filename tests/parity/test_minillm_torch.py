"""MiniLLM's step, from the text of a round to the gradient, against its equations in PyTorch and float64."""

import jax
import numpy as np
import optax
import pytest

from selecttkd_jax import methods, models, sources
from selecttkd_jax.data import Batch, batch_shapes
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.sharding import MeshConfig, make_mesh, place_batch
from selecttkd_jax.training import Frozen, Pair, init_state, make_train_step

torch = pytest.importorskip("torch")

SHAPE = {"hidden_size": 8, "mlp_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "init_scale": 0.4}
STUDENT = models.DecoderConfig(vocab_size=19, num_layers=1, **SHAPE)
TEACHER = models.DecoderConfig(vocab_size=17, num_layers=2, **SHAPE)
PAIR = Pair(student=STUDENT, teacher=TEACHER, vocab_size=17)
ROWS, LENGTH, SHARE, DISCOUNT, CLIP = 4, 7, 0.3, 0.9, 0.1
METHOD = methods.MiniLlm(teacher_share=SHARE, discount=DISCOUNT, clip=CLIP, rollouts=8, passes=2, pretraining=0.7)


class Given:
    """A source of batches that are there; each goes by its first token."""

    shapes = batch_shapes(ROWS, LENGTH)

    def __init__(self, first):
        self.batches = [make_batch(first + number) for number in range(4)]
        self.taken = 0

    def next(self, state):
        self.taken += 1
        return self.batches[self.taken - 1]


def make_batch(number):
    rng = np.random.default_rng(number)
    ids = rng.integers(0, 17, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH, ROWS)[:, None]
    mask[number % ROWS] = False
    mask[:, 0] = False
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    return Batch(ids, labels, mask, positions, np.ones((ROWS, LENGTH), np.int32))


@jax.jit
def logits_of(student, teacher, batch):
    def of(config, params):
        hidden, _ = models.forward(config, params, batch.input_ids, batch.positions, batch.segment_ids)
        return models.head_logits(config, params, hidden)[..., :17]

    return of(STUDENT, student), of(TEACHER, teacher)


def double(array, *, grad=False):
    return torch.tensor(np.asarray(array, np.float64), requires_grad=grad)


def picked(log_probs, labels):
    return torch.gather(log_probs, 2, torch.tensor(np.asarray(labels, np.int64))[..., None])[..., 0]


def advantages_of(round_texts, old, teacher):
    """`{row: (log q_old, w, A)}` of a round, each row by its bytes, written as sums over the tokens that follow."""
    rows, everything = {}, []
    for batch in round_texts:
        zq, zp = (double(z) for z in logits_of(old, teacher, batch))
        log_q, log_p = (picked(torch.log_softmax(z, -1), batch.labels) for z in (zq, zp))
        for row in range(ROWS):
            valid = np.flatnonzero(batch.loss_mask[row])
            rewards = [min(max((float(log_p[row, t]) - float(log_q[row, t])) / 0.5, -100.0), 100.0) for t in valid]
            returns = [
                sum(DISCOUNT ** (s - t) * rewards[s] for s in range(t, len(valid))) / (len(valid) - t)
                for t in range(len(valid))
            ]
            q, p = (np.exp(log[row, valid].numpy()) for log in (log_q, log_p))
            rows[batch.input_ids[row].tobytes()] = (log_q[row, valid], q / ((1 - SHARE) * q + SHARE * p), returns)
            everything += returns
    mean, std = np.mean(everything), np.std(everything)
    return {row: (old, w, [(r - mean) / std for r in returns]) for row, (old, w, returns) in rows.items()}


def equations(zq, zp, batch, known, corpus_zq, corpus_zp, corpus, normalizer):
    """The loss of a batch in float64."""
    log_q, log_p = torch.log_softmax(zq, -1), torch.log_softmax(zp, -1)
    label_log_q = picked(log_q, batch.labels)
    surrogate, by_row, clipped = [], [], 0
    for row in range(ROWS):
        valid = np.flatnonzero(batch.loss_mask[row])
        old, weights, advantages = known[batch.input_ids[row].tobytes()]
        for t, old_log_q, w, a in zip(valid, old, weights, advantages, strict=True):
            ratio = w * torch.exp(label_log_q[row, t] - old_log_q)
            held = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
            clipped += bool(-a * held > -a * ratio)
            surrogate.append(torch.maximum(-a * ratio, -a * held))
        # Reverse KL where the student's best token is among the teacher's two best, a tenth of it elsewhere.
        terms = []
        for t in valid:
            kl = torch.sum(torch.exp(log_q[row, t]) * (log_q[row, t] - log_p[row, t]))
            best = int(torch.argmax(zq[row, t]))
            accepted = best in torch.argsort(zp[row, t], descending=True)[:2].tolist()
            terms.append(kl if accepted else 0.1 * kl)
        by_row.append(terms)
    tokens = [term for terms in by_row for term in terms]
    if normalizer == "token":
        regularizer = sum(tokens) / len(tokens)
    else:
        means = [sum(terms) / len(terms) for terms in by_row if terms]
        regularizer = sum(means) / len(means)
    mask = torch.tensor(np.asarray(corpus.loss_mask))
    corpus_log_q = torch.log_softmax(corpus_zq, -1)
    hard = -picked(corpus_log_q, corpus.labels)[mask].mean()
    soft = -torch.sum(torch.softmax(corpus_zp, -1) * corpus_log_q, -1)[mask].mean()
    policy = sum(surrogate) / len(surrogate)
    return policy + regularizer + 0.7 * 0.5 * (hard + soft), clipped


@pytest.fixture(scope="module")
def params():
    old, new = (models.init_params(STUDENT, jax.random.key(seed)) for seed in (2, 3))
    new = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, old, new)
    return old, new, models.init_params(TEACHER, jax.random.key(1))


@pytest.mark.parametrize(("normalizer", "micro_batches"), [("sequence", 2), ("token", 1)])
def test_a_step_follows_the_equations(params, normalizer, micro_batches):
    old, new, teacher = params
    texts, corpus, frozen, mesh = Given(10), Given(50), Frozen(teacher), make_mesh(MeshConfig())
    objective = ObjectiveConfig(verifier="greedy_top_k", k=2, floor=0.1, normalizer=normalizer)
    parts = methods.Parts(pair=PAIR, objective=objective, stored=corpus, mesh=mesh, frozen=frozen)
    loss = METHOD.build(parts).loss
    rewards = sources.Rewards(SHARE, DISCOUNT)
    score = sources.Scorer(mesh, PAIR, frozen)
    source = sources.RolloutBuffer(texts, score, rewards, mesh, round_steps=2, passes=2)
    source = sources.BesideCorpus(source, corpus)

    state = init_state(old, optax.sgd(1.0), seed=0)
    batch = source.next(state)
    rollouts = batch.rows
    known = advantages_of(texts.batches[:2], old, teacher)

    # The oracle's loss and slope of the logits, carried to the parameters by the model itself.
    (zq, zp), pull = jax.vjp(lambda new: logits_of(new, teacher, rollouts.rows), new)
    (corpus_zq, corpus_zp), corpus_pull = jax.vjp(lambda new: logits_of(new, teacher, batch.corpus), new)
    zq_64, corpus_zq_64 = double(zq, grad=True), double(corpus_zq, grad=True)
    expected, clipped = equations(
        zq_64, double(zp), rollouts.rows, known, corpus_zq_64, double(corpus_zp), batch.corpus, normalizer
    )
    expected.backward()
    slopes = (
        pull((zq_64.grad.numpy().astype(np.float32), np.zeros_like(zp)))[0],
        corpus_pull((corpus_zq_64.grad.numpy().astype(np.float32), np.zeros_like(corpus_zp)))[0],
    )
    slope = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), *slopes)

    step = make_train_step(loss, optax.sgd(1.0), micro_batches=micro_batches)
    with jax.set_mesh(mesh):
        state, metrics = step(init_state(new, optax.sgd(1.0), seed=0), frozen, place_batch(mesh, batch, ROWS))
    means = metrics["sums"].means()
    assert means["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert means["clipped"] == pytest.approx(clipped / means["tokens"], rel=1e-5) and 0 < clipped < means["tokens"]
    found = jax.tree.map(lambda before, after: np.asarray(before) - np.asarray(after), new, state.params)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(slope))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(slope), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * largest
