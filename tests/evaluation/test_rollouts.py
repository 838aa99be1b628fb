"""What is said of written text with both models, against logits of each row by itself, in float64."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from selecttkd_jax import models, selection, training
from selecttkd_jax.data import Rows, eval_batches
from selecttkd_jax.evaluation import Rollouts, SampleLog
from selecttkd_jax.evaluation._rollouts import split_text
from selecttkd_jax.sharding import MeshConfig, make_mesh, place_batch
from selecttkd_jax.sources import Taken

pytestmark = pytest.mark.one_stack

SHAPE = dict(hidden_size=10, mlp_size=13, num_heads=2, num_kv_heads=1, head_dim=4, tied_head=True, init_scale=0.5)
TEACHER = models.DecoderConfig(vocab_size=19, num_layers=2, **SHAPE)
STUDENT = models.DecoderConfig(vocab_size=17, num_layers=1, **SHAPE)
PAIR = training.Pair(student=STUDENT, teacher=TEACHER, vocab_size=16)
LENGTH, LONGEST, STOPS = 20, 13, (3, 5)


@pytest.fixture(scope="module")
def weights():
    return models.init_params(STUDENT, jax.random.key(0)), models.init_params(TEACHER, jax.random.key(1))


@pytest.fixture(scope="module")
def texts():
    """Prompt and response of each row; one row was not written."""
    random = np.random.default_rng(7)
    sizes = [(3, 13), (5, 4), (2, 7), (4, 0)]
    made = [(random.integers(0, 16, prompt), random.integers(0, 16, response)) for prompt, response in sizes]
    for prompt, _ in made:
        prompt[1] = STOPS[0]  # stop tokens of a prompt are no responses' ends
    return made


@pytest.fixture(scope="module")
def batch(texts):
    rows = [np.concatenate(pair).astype(np.int32) for pair in texts]
    response = [np.arange(len(row)) >= len(prompt) for row, (prompt, _) in zip(rows, texts, strict=True)]
    (made,) = eval_batches(Rows(tuple(rows), tuple(response), LENGTH, len(rows)), len(rows), LENGTH)
    return made


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def expect(texts, weights, accept):
    """Every token's place, label, acceptance and the student's entropy there."""
    found = []
    for prompt, response in texts:
        if not len(response):
            continue
        ids = np.concatenate([prompt, response]).astype(np.int32)
        log_q, log_p = (
            log_softmax(models.logits(models.Pretrained(config, one, {}), ids[None])[0, :, :16])
            for config, one in zip((STUDENT, TEACHER), weights, strict=True)
        )
        for place, label in enumerate(response):
            at = len(prompt) + place - 1
            p, q = np.exp(log_p[at]), np.exp(log_q[at])
            found.append((place, label, accept(p, q), -np.sum(q * log_q[at])))
    return [np.array(column) for column in zip(*found, strict=True)]


def greedy(p, q):
    return float(np.argmax(q) in np.argsort(-p)[:3])


def spec(p, q):
    return 1 - (1 - np.minimum(p, q).sum()) ** 2


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2), MeshConfig(tensor=2)], ids=str)
@pytest.mark.parametrize(
    ("verifier", "accept"), [(partial(selection.greedy_top_k, k=3), greedy), (partial(selection.spec_k, k=2), spec)]
)
def test_every_number_is_a_mean_over_written_tokens(weights, texts, batch, parts, mesh, verifier, accept):
    student, teacher = weights
    shown = []
    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        look = Rollouts(
            "student",
            PAIR,
            training.Frozen(teacher),
            lambda: Taken(4, batch),
            verifier,
            stop_ids=STOPS,
            longest=LONGEST,
            every=1,
            parts=parts,
            place=partial(place_batch, mesh, rows=4 // parts),
            show=lambda step, responses: shown.extend([step, *responses]),
        )
        numbers = look(student)
    places, labels, accepted, entropy = expect(texts, weights, accept)
    stops = np.isin(labels, STOPS)
    assert stops.any()
    expected = {
        "tar": accepted.mean(),
        "entropy": entropy.mean(),
        "stop_share_of_rejected": (1 - accepted)[stops].sum() / (1 - accepted).sum(),
        # Thirteen places in bins of two, each with at least one token.
        **{f"tar_from_{at}": accepted[(places >= at) & (places < at + 2)].mean() for at in range(0, 13, 2)},
    }
    assert numbers == pytest.approx(expected, rel=1e-4)
    # What is shown: the first part's rows, with the acceptance of each token.
    step, *responses = shown
    first = [pair for pair in texts[::parts] if len(pair[1])]
    assert step == 4
    for (prompt, response, acceptance), pair in zip(responses, first, strict=True):
        np.testing.assert_array_equal(prompt, pair[0])
        np.testing.assert_array_equal(response, pair[1])
        np.testing.assert_allclose(acceptance, expect([pair], weights, accept)[2], rtol=1e-4, atol=1e-6)


def test_nothing_is_said_where_nothing_was_written(weights, batch):
    student, teacher = weights
    make = partial(Rollouts, "teacher", PAIR, training.Frozen(teacher), stop_ids=STOPS, longest=LONGEST, every=1)
    verifier = partial(selection.greedy_top_k, k=3)
    assert make(taken=lambda: None, verifier=verifier)(student) == {}
    empty = jax.tree.map(np.zeros_like, batch)
    assert make(taken=lambda: Taken(1, empty), verifier=verifier)(student) == {}


def letters(ids):
    """A tokenizer of bytes: a letter outside ASCII takes two tokens, of which neither is text by itself."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_samples_are_text_with_rejected_tokens_marked(caplog):
    written = []
    log = SampleLog("student", letters, lambda step, samples: written.append((step, samples)))
    text = "né, so"
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    acceptance = np.array([1.0, 0.2, 0.9, 1.0, 0.5, 0.4999, 1.0], np.float32)
    with caplog.at_level("INFO", "selecttkd_jax"):
        log(7, [(np.array([104, 105], np.int32), ids, acceptance)])
    ((step, (sample,)),) = written
    assert step == 7
    assert json.loads(json.dumps(sample)) == {
        "step": 7,
        "by": "student",
        "prompt": "hi",
        "response": text,
        "marked": "n[é], [s]o",
        "tokens": ["n", "é", "", ",", " ", "s", "o"],
        "acceptance": [1.0, 0.2, 0.9, 1.0, 0.5, 0.4999, 1.0],
    }
    assert caplog.messages == ["step 7, the student's text, [rejected]: hi >>> n[é], [s]o"]


def test_pieces_of_a_text_are_the_text_again():
    for text in ("", "a", "Grüße, 世界!", "🙂🙂"):
        ids = list(text.encode())
        pieces = split_text(letters, ids)
        assert "".join(pieces) == text and len(pieces) == len(ids)
