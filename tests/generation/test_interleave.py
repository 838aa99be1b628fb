"""Text that two models write together, against a plain loop without a cache and against what each writes alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.generation import KeepShare, KeepTopK, Sampling, decode, interleave
from selecttkd_jax.generation._interleave import COIN, TEACHER

STUDENT = models.DecoderConfig(44, 16, 24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, init_scale=0.3)
TEACHER_CONFIG = replace(STUDENT, vocab_size=41, num_layers=2, tied_head=True)
CONFIGS, VOCAB, STOPS = (STUDENT, TEACHER_CONFIG), 40, (3, 5)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=13)


@pytest.fixture(scope="module")
def params():
    return tuple(models.init_params(config, jax.random.key(seed)) for seed, config in enumerate(CONFIGS))


@pytest.fixture(scope="module")
def prompts():
    """Padded on the right: of 1, 4 and 7 tokens, and a filler."""
    rng = np.random.default_rng(0)
    mask = np.arange(7)[None, :] < np.array([1, 4, 7, 0])[:, None]
    return np.where(mask, rng.integers(6, VOCAB, (4, 7)), 0).astype(np.int32), mask


KEYS, ALL = jax.random.split(jax.random.key(3), 4), slice(None)


def write(params, prompts, rule, *, sampling=SAMPLING, rows=ALL, keys=KEYS):
    ids, mask = (jnp.asarray(array[rows]) for array in prompts)
    arguments = (CONFIGS, params, ids, mask, jnp.asarray(STOPS, jnp.int32), keys[rows])
    tokens, lengths = interleave(*arguments, rule=rule, sampling=sampling, vocab_size=VOCAB)
    return [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]


def write_plainly(params, prompt, key, is_kept):
    """One row, token by token, each model reading all of the text again; and how many tokens are the teacher's."""
    text, replaced = list(prompt), 0
    for number in range(SAMPLING.max_new_tokens):
        student, teacher = (
            np.asarray(models.logits(models.Pretrained(config, part, {}), np.array([text])))[0, -1, :VOCAB]
            for config, part in zip(CONFIGS, params, strict=True)
        )

        def draw(logits, key, number=number):
            return int(jax.random.categorical(jax.random.fold_in(key, number), logits / SAMPLING.temperature))

        token = draw(student, key)
        if not is_kept(teacher, token, jax.random.fold_in(jax.random.fold_in(key, COIN), number)):
            token, replaced = draw(teacher, jax.random.fold_in(key, TEACHER)), replaced + 1
        text.append(token)
        if token in STOPS:
            break
    return text[len(prompt) :], replaced


def in_top_4(teacher, token, key):
    del key
    return token in np.argsort(-teacher, kind="stable")[:4]


def by_coin(teacher, token, key):
    del teacher, token
    return float(jax.random.uniform(key)) >= 0.3


@pytest.mark.parametrize("block", [1, 5])
@pytest.mark.parametrize(
    ("rule", "is_kept"), [(KeepTopK(4), in_top_4), (KeepShare(0.3), by_coin)], ids=["top_k", "share"]
)
def test_the_text_is_that_of_a_plain_loop_without_a_cache(params, prompts, rule, is_kept, block):
    found = write(params, prompts, replace(rule, block=block))
    ids, mask = prompts
    plain = [write_plainly(params, ids[row][mask[row]], KEYS[row], is_kept) for row in range(3)]
    assert found == [*(text for text, _ in plain), []]
    tokens, replaced = sum(len(text) for text, _ in plain), sum(count for _, count in plain)
    assert 0 < replaced < tokens and tokens > 13


@pytest.mark.parametrize(
    ("rules", "writer", "stream"),
    [((KeepTopK(VOCAB + 9), KeepShare(0.0)), 0, None), ((KeepShare(1.0),), 1, TEACHER)],
    ids=["student", "teacher"],
)
def test_a_rule_that_keeps_all_or_nothing_leaves_one_writer(params, prompts, rules, writer, stream):
    keys = KEYS if stream is None else jax.vmap(jax.random.fold_in, (0, None))(KEYS, np.uint32(stream))
    ids, mask = (jnp.asarray(array) for array in prompts)
    arguments = (CONFIGS[writer], params[writer], ids, mask, jnp.asarray(STOPS, jnp.int32), keys)
    tokens, lengths = decode(*arguments, sampling=SAMPLING, vocab_size=VOCAB)
    expected = [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]
    for rule in rules:
        assert write(params, prompts, rule) == expected


def test_a_greedy_teacher_that_keeps_its_best_token_alone_writes_all(params, prompts):
    greedy = replace(SAMPLING, temperature=0.0)
    ids, mask = (jnp.asarray(array) for array in prompts)
    arguments = (TEACHER_CONFIG, params[1], ids, mask, jnp.asarray(STOPS, jnp.int32), KEYS)
    tokens, lengths = decode(*arguments, sampling=greedy, vocab_size=VOCAB)
    expected = [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]
    assert write(params, prompts, KeepTopK(1), sampling=greedy) == expected


def test_a_row_is_written_alike_alone_and_beside_others(params, prompts):
    together = write(params, prompts, KeepTopK(4))
    wider = tuple(np.pad(array, ((0, 0), (0, 9))) for array in prompts)
    assert write(params, wider, KeepTopK(4)) == together
    for row in range(3):
        assert write(params, prompts, KeepTopK(4), rows=slice(row, row + 1)) == [together[row]]


def test_tokens_of_the_mixture_have_its_probabilities(params, prompts):
    """The first token of 4,000 rows: (1 - a) q + a p, within five standard errors."""
    count, share = 4000, 0.4
    ids, mask = (np.repeat(array[1:2], count, axis=0) for array in prompts)
    keys = jax.random.split(jax.random.key(11), count)
    first = [
        row[0] for row in write(params, (ids, mask), KeepShare(share), sampling=Sampling(max_new_tokens=1), keys=keys)
    ]
    q, p = (
        np.asarray(
            jax.nn.softmax(models.logits(models.Pretrained(config, part, {}), ids[:1][mask[:1]][None])[0, -1, :VOCAB])
        )
        for config, part in zip(CONFIGS, params, strict=True)
    )
    found = np.bincount(first, minlength=VOCAB) / count

    def fits(expected):
        return np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / count))

    assert fits((1 - share) * q + share * p) and not fits(q) and not fits(p)


def test_rules_out_of_range_are_refused():
    with pytest.raises(InputError, match="top_k"):
        KeepTopK(0)
    with pytest.raises(InputError, match="teacher_share"):
        KeepShare(1.1)
