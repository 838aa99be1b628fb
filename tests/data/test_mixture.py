"""Rows of several sources: joined without a copy, mixed by weight to the row, resumed exactly, shared by processes."""

import json
from collections import Counter
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selecttkd_jax import data
from selecttkd_jax._errors import InputError
from selecttkd_jax.data._joining import join_rows
from selecttkd_jax.data._order import Mixture
from selecttkd_jax.data._rows import Rows

pytestmark = pytest.mark.one_stack
LENGTH = 16


def make_rows(count, first, seed=0):
    """Row i begins with first + i; its last tokens carry loss."""
    rng = np.random.default_rng(seed)
    tokens = tuple(
        np.concatenate([[first + i], rng.integers(1, 99, rng.integers(2, LENGTH - 1))]).astype(np.int32)
        for i in range(count)
    )
    response = tuple(np.arange(len(row)) >= 2 for row in tokens)
    names = tuple(f"{first} line {i}" for i in range(count))
    return Rows(tokens, response, LENGTH, read=count + 2, cut=1, dropped=2, sources=names)


def mix(weights=(3.0, 1.0), counts=(20, 7), seeds=(0, 1)):
    several = [make_rows(count, 1000 * (i + 1), seeds[i]) for i, count in enumerate(counts)]
    return join_rows(
        [(f"{i}.jsonl", rows, weight) for i, (rows, weight) in enumerate(zip(several, weights, strict=True))]
    )


def heads(batch):
    """The first token of each row of a batch, which says the row."""
    return [
        int(ids[start])
        for ids, positions, segments in zip(batch.input_ids, batch.positions, batch.segment_ids, strict=True)
        for start in np.flatnonzero((positions == 0) & (segments > 0))
    ]


def sources_of(batch):
    return [head // 1000 - 1 for head in heads(batch)]


def test_joined_rows_are_those_of_the_sources_one_behind_the_other():
    first, second = make_rows(5, 1000), make_rows(3, 2000, seed=1)
    joined = join_rows([("a", first, None), ("b", second, None)])
    expected = Rows((*first.tokens, *second.tokens), (*first.response, *second.response), LENGTH, read=12)
    assert len(joined) == 8 and (joined.read, joined.cut, joined.dropped) == (12, 2, 4)
    assert joined.tokens[4] is first.tokens[4] and joined.tokens[5] is second.tokens[0]
    assert list(joined.sources) == [*first.sources, *second.sources] and joined.sources[-1] == "2000 line 2"
    for name in ("total_tokens", "largest_id", "response_tokens", "prompts_alone"):
        assert getattr(joined, name) == getattr(expected, name), name
    assert joined.lengths.tolist() == expected.lengths.tolist()
    assert list(joined.prompt_lengths) == list(expected.prompt_lengths)
    for ours, theirs in zip(joined.tokens[3:6], expected.tokens[3:6], strict=True):
        assert ours is theirs
    assert join_rows([("a", first, 2.0)]) is first


def test_without_weights_each_row_comes_once_an_epoch():
    rows = mix((None, None))
    batches = data.make_batches(rows, 9, LENGTH, seed=2, epochs=2)
    seen = [head for batch in batches for head in heads(batch)]
    assert Counter(seen) == Counter(dict.fromkeys(seen, 2)) and len(set(seen)) == 27


@given(st.lists(st.integers(1, 40).map(lambda tenths: tenths / 10), min_size=2, max_size=4), st.integers(0, 2**40))
def test_every_stretch_of_a_mixture_has_its_shares(weights, start):
    mixture = Mixture(weights, 2**48)
    exact = [Fraction(str(weight)) for weight in weights]
    places = [mixture[start + i] for i in range(60)]
    for source, weight in enumerate(exact):
        own = [place for which, place in places if which == source]
        assert own == list(range(own[0], own[0] + len(own))) if own else True  # none left out, none twice
        expected = 60 * weight / sum(exact)
        assert abs(len(own) - expected) < 2 * len(weights)
    assert mixture[0] == (0, 0)


def test_shares_stay_exact_for_ever():
    assert Mixture([0.7, 0.3], 2**48)[10**9] == (0, 700_000_000)
    assert Mixture([0.3, 0.3, 0.4], 2**48)[10**9 + 2] == (2, 400_000_000)


@pytest.mark.parametrize(("weights", "shares"), [((3.0, 1.0), (6, 2)), ((0.1, 0.3), (2, 6)), ((0.7, 0.1), (7, 1))])
def test_each_batch_has_the_shares_that_the_weights_say(weights, shares):
    batches = data.make_batches(mix(weights), 8, LENGTH, seed=1)
    for _ in range(30):
        counts = Counter(sources_of(next(batches)))
        assert (counts[0], counts[1]) == shares


def test_each_source_comes_whole_before_it_begins_again_in_another_order():
    batches = data.make_batches(mix(), 4, LENGTH, seed=3)
    seen = [head for _ in range(28) for head in heads(next(batches))]
    second = [head for head in seen if head >= 2000]
    passes = [second[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(2000, 2007)) for one in passes) and len(set(map(tuple, passes))) == 4
    assert heads(next(data.make_batches(mix(), 4, LENGTH, seed=4))) != seen[:4]


def test_sources_of_one_size_are_not_shuffled_alike():
    batches = data.make_batches(mix((1.0, 1.0), (20, 20)), 40, LENGTH, seed=0)
    seen = heads(next(batches))
    assert [head for head in seen if head < 2000] != [head - 1000 for head in seen if head >= 2000]


@pytest.mark.parametrize("make", [data.make_batches, data.pack_batches])
def test_a_mixture_resumes_exactly_and_processes_share_it(make):
    whole = make(mix(), 4, LENGTH, 5)
    for _ in range(5):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    parts = [make(mix(), 4, LENGTH, 5, process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.set_state(state)
    for _ in range(20):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(next, parts))
        jax.tree.map(np.testing.assert_array_equal, next(whole), joined)
    with pytest.raises(InputError, match="saved data position has rows"):
        make(mix((3.0, 2.0)), 4, LENGTH, 5).set_state(state)


def test_packed_rows_have_the_shares_too():
    rows = mix((3.0, 1.0), (900, 300))
    batches = data.pack_batches(rows, 8, LENGTH, 0)
    counts = Counter(source for _ in range(60) for source in sources_of(next(batches)))
    assert counts[1] / counts.total() == pytest.approx(0.25, abs=0.05)
    assert "rows share a sequence" in batches.summary() and batches.sequences_an_epoch() > 0


def test_the_log_says_what_each_source_is_to_a_run():
    assert mix((1.0, 3.0)).describe_parts() == [
        "0.jsonl: 20 rows, 25 % of what is learned from; 0.338 times through them an epoch",
        "1.jsonl: 7 rows, 75 % of what is learned from; 2.89 times through them an epoch",
    ]
    first, _ = mix((None, None)).describe_parts()
    assert first == "0.jsonl: 20 rows, 74.1 % of what is learned from; 1 times through them an epoch"


def test_rows_that_are_among_others_are_counted():
    rows = make_rows(9, 1000)
    assert rows.count_known(make_rows(4, 1000)) == 4
    assert rows.count_known(make_rows(4, 2000)) == 0


SOURCE = data.SourceConfig(path="a.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data\.train is missing: .*\[\[data\.sources\]\]"),
        ({"train": "a.jsonl", "sources": (SOURCE,)}, "both say what to learn from"),
        ({"sources": ()}, r"data\.sources is empty"),
        ({"sources": (SOURCE, SOURCE)}, r"a\.jsonl stands 2 times"),
        ({"sources": (SOURCE, data.SourceConfig(path="b", weight=2.0))}, r"source a\.jsonl has no weight"),
    ],
)
def test_sources_that_say_too_little_or_too_much(options, message):
    with pytest.raises(InputError, match=message):
        data.DataConfig(**options)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_more_than_zero(weight):
    with pytest.raises(InputError, match=r"weight of the source b\.jsonl must be more than 0 and finite"):
        data.SourceConfig(path="b.jsonl", weight=weight)


def test_held_out_rows_are_shared_evenly():
    def count(number, rows):
        sources = tuple(data.SourceConfig(path=str(i), weight=1.0 + i) for i in range(number))
        return data.count_held_out(data.DataConfig(sources=sources, held_out_rows=rows))

    assert count(3, 10) == [4, 3, 3] and count(2, 64) == [32, 32] and count(3, 2) == [1, 1, 0]
    assert data.count_held_out(data.DataConfig(sources=(SOURCE,), held_out="b.jsonl")) == [0]
