"""A language model's loss beside a method's own: its value and slope, its rows, and a run that learns from them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from data.small_tokenizers import build_tokenizer
from runs import tiny_run

from selecttkd_jax import data, methods, models, runs, sources
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.sharding import MeshConfig, make_mesh, place_batch
from selecttkd_jax.training import Frozen, Pair, WithPretraining, init_state, make_train_step

pytestmark = pytest.mark.one_stack

SHAPE = {"hidden_size": 8, "mlp_size": 12, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
CONFIG = models.DecoderConfig(vocab_size=19, init_scale=0.4, **SHAPE)
PAIR = Pair(student=CONFIG, teacher=CONFIG, vocab_size=17)
ROWS, LENGTH = 4, 7


def make_batch(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 17, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH, ROWS)[:, None]
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    return data.Batch(ids, np.pad(ids[:, 1:], ((0, 0), (0, 1))), mask, positions, np.ones_like(ids))


class Given:
    """Two batches; the position is a count."""

    shapes = data.batch_shapes(ROWS, LENGTH)

    def __init__(self, seed):
        self.batches, self.taken = [make_batch(seed), make_batch(seed + 1)], 0

    def next(self, state):
        self.taken += 1
        return self.batches[(self.taken - 1) % 2]

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


def build(normalizer, **options):
    objective = ObjectiveConfig(divergence="skew_kl", verifier="greedy_top_k", k=2, floor=0.1, normalizer=normalizer)
    stored, corpus = Given(1), Given(7)
    parts = methods.Parts(PAIR, objective, stored, make_mesh(MeshConfig()), corpus=corpus)
    return methods.DistiLlm(**options).build(parts)


@pytest.mark.parametrize("normalizer", ["sequence", "token"])
def test_the_step_is_that_of_both_losses(normalizer):
    """The corpus's cross-entropy is a mean over its tokens, however the other loss is divided and the batch is cut."""
    student, teacher = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (1, 2))
    corpus = Given(7).batches[0]

    def cross_entropy(params):
        hidden, _ = models.forward(CONFIG, params, corpus.input_ids, corpus.positions, corpus.segment_ids)
        logits = models.head_logits(CONFIG, params, hidden)[..., :17]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), corpus.labels[..., None], axis=2)[..., 0]
        return -jnp.mean(picked[corpus.loss_mask])

    alone, both = build(normalizer), build(normalizer, pretraining=0.7, corpus="somewhere")
    found = []
    for method, parts in ((alone, 1), (both, 1), (both, 2)):
        mesh = make_mesh(MeshConfig())
        state = init_state(student, optax.sgd(1.0), seed=0)
        with jax.set_mesh(mesh):
            batch = place_batch(mesh, Given(1).batches[0], ROWS)
            if method is both:
                batch = data.WithCorpus(batch, place_batch(mesh, corpus, ROWS))
            step = make_train_step(method.loss, optax.sgd(1.0), micro_batches=parts)
            state, metrics = step(state, Frozen(teacher=teacher), batch)
        slope = jax.tree.map(lambda before, after: np.asarray(before) - np.asarray(after), student, state.params)
        found.append((metrics["sums"].means(), slope))
    (plain, plain_slope), *others = found
    value, slope = jax.value_and_grad(cross_entropy)(student)
    for means, theirs in others:
        assert means["pretraining"] == pytest.approx(float(value), rel=1e-5)
        assert means["loss"] == pytest.approx(plain["loss"] + 0.7 * float(value), rel=1e-5)
        assert {name: means[name] for name in plain if name != "loss"} == pytest.approx(
            {name: plain[name] for name in plain if name != "loss"}, rel=1e-5
        )
        expected = jax.tree.map(lambda a, b: a + 0.7 * np.asarray(b), plain_slope, slope)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), theirs, expected)


def test_both_positions_are_resumed_and_evaluations_are_passed_on():
    class Learning(Given):
        def learn(self, row):
            self.row = row

    def make():
        return sources.BesideCorpus(Learning(1), Given(7))

    whole, before, resumed = make(), make(), make()
    expected = [whole.next(None) for _ in range(5)]
    for _ in range(3):
        before.next(None)
    resumed.set_state(json.loads(json.dumps(before.get_state())))
    jax.tree.map(np.testing.assert_array_equal, [resumed.next(None), resumed.next(None)], expected[3:])
    resumed.learn({"held_out/kl": 1.0})
    assert resumed._source.row == {"held_out/kl": 1.0}


def test_texts_are_cut_into_rows_all_of_which_is_learned(tmp_path, caplog):
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    texts = ["the cat sat on a mat and ate red fish", "dogs ran"]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = data.read_corpus(path, tokenizer, 6)
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    parts = [text[start : start + 6] for text in ids for start in range(0, len(text), 6)]
    assert [row.tolist() for row in rows.tokens] == [part for part in parts if len(part) > 1]
    assert all(not mask[0] and mask[1:].all() for mask in rows.response) and rows.read == 2
    path.write_text('{"text": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(InputError, match="corpus.jsonl line 2 has no text"):
        data.read_corpus(path, tokenizer, 6)
    with path.open("a") as file:
        file.write('{"text": \n')
    with pytest.raises(InputError, match="2 of 3 rows of .* line 2 has no text.*line 3 .*data.skip_bad_rows = true"):
        data.read_corpus(path, tokenizer, 6)
    rows = data.read_corpus(path, tokenizer, 6, skip_bad_rows=True)
    assert (len(rows), rows.read) == (1, 1) and "2 of 3 rows are skipped" in caplog.text


@pytest.mark.usefixtures("lenient_promotion")
def test_a_run_on_prompts_alone_learns_from_a_corpus(tmp_path):
    config = tiny_run.build(tmp_path)
    (tmp_path / "student" / "generation_config.json").unlink()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    files = {
        "prompts": [{"prompt": row["question"]} for row in rows],
        "held_out": [{"prompt": row["question"], "completion": row["answer"]} for row in rows[:5]],
        "corpus": [{"text": " ".join(tiny_run.WORDS[number:])} for number in range(9)],
    }
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sampling = Sampling(max_new_tokens=8)
    run = runs.train(
        replace(
            config,
            data=replace(config.data, train=paths["prompts"], held_out=paths["held_out"], columns=None),
            method=methods.DistiLlm(threshold=1.0, sampling=sampling, pretraining=1.0, corpus=paths["corpus"]),
            training=replace(config.training, steps=2, eval_every=2),
        )
    )
    assert all(row["pretraining"] > 1 for row in read_metrics(run.metrics)[1:])


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="method.corpus is pre-trained on where method.pretraining is above 0"):
        methods.DistiLlm(corpus="corpus.jsonl")
    with pytest.raises(InputError, match="normalizer must be sequence or token, got 'weight'"):
        WithPretraining(build("sequence").loss, PAIR, "weight", coefficient=0.5, label_share=1.0)
    with pytest.raises(InputError, match="objective.normalizer cannot be weight"):
        methods.DistiLlm(pretraining=1.0).check(ObjectiveConfig(normalizer="weight"))
