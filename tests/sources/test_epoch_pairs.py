"""Pairs of an epoch on disk: what a stopped run finds there, what it keeps, and what it refuses."""

import json
import zlib
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Rows, batch_shapes, make_batches, read_records
from selecttkd_jax.generation import Sampling
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import EpochPairs, RolloutFiles, Stored, split_prompts

LENGTH, ROWS, EPOCH, STEPS = 16, 4, 3, 8
# Steps that are written at once; the rounds of all epochs, of which each has a shorter last one.
ROUND, ROUNDS = 2, 2 + 2 + 1


def stored_rows():
    """Every third row has two turns, of which the first carries loss, too."""
    random = np.random.default_rng(0)
    tokens = tuple(random.integers(8, 40, 8 + row % 5).astype(np.int32) for row in range(17))
    response = tuple(np.arange(len(row)) >= 5 for row in tokens)
    for row in response[::3]:
        row[2:4] = True
    return Rows(tokens, response, LENGTH, len(tokens))


class Stopped(Exception):
    pass


class Run:
    """A source as a run has it, with writers whose text follows from weights, key and role alone."""

    def __init__(self, directory, *, teacher="written", identity=1, stop_after=None):
        self.calls, self.stop_after = [], stop_after
        batches = make_batches(stored_rows(), ROWS, LENGTH, seed=1)
        files = RolloutFiles(
            directory / "rollouts",
            describe=lambda step: [{"prompt": f"{row}?", "row": f"line {row}"} for row in batches.list_rows(step)],
            decode=lambda ids: " ".join(map(str, ids)),
            identity=identity,
        )
        self.source = EpochPairs(
            Stored(batches, batch_shapes(ROWS, LENGTH)),
            self.writer("student"),
            self.writer("teacher") if teacher == "written" else None,
            make_mesh(MeshConfig()),
            files,
            sampling=Sampling(max_new_tokens=4),
            epoch_steps=EPOCH,
            round_steps=ROUND,
            steps=STEPS,
        )

    def writer(self, role):
        def rewrite(state, batch, chosen, key):
            if len(self.calls) == self.stop_after:
                raise Stopped
            self.calls.append(role)
            assert len(chosen) == len(key) == ROUND * ROWS == len(batch.input_ids)  # a shape for all
            weight = int(state.params["weight"][0]) if role == "student" else 0
            ids, mask = np.array(batch.input_ids), np.array(batch.loss_mask)
            for row in np.flatnonzero(chosen):
                prompt, mask[row] = split_prompts(batch)[row], False
                token = 8 + (weight + int(jax.random.randint(key[row], (), 0, 1000))) % 32
                ids[row, len(prompt) :] = 0
                ids[row, len(prompt) : len(prompt) + 2] = token
                mask[row, len(prompt) - 1 : len(prompt) + 1] = True
            real = (np.arange(LENGTH) < (mask.argmax(axis=1) + 3)[:, None]).astype(np.int32)
            real = np.where(chosen[:, None], real, batch.segment_ids)
            labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
            return replace(batch, input_ids=ids, labels=labels, loss_mask=mask, segment_ids=real)

        return rewrite

    def take(self, first, last):
        return [self.source.next(state_at(step)) for step in range(first, last)]


def state_at(step, change=0):
    weights = {"weight": np.full(3, step + change, np.float32)}
    return SimpleNamespace(step=step, key=jax.random.key(5), params=weights)


def texts(directory):
    return {path.name: path.read_text() for path in sorted((directory / "rollouts").iterdir())}


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module", params=["written", "stored"])
def whole(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    run = Run(directory, teacher=request.param)
    return SimpleNamespace(teacher=request.param, batches=run.take(0, STEPS), files=texts(directory), run=run)


def test_an_epoch_is_answered_once_by_the_student_that_it_begins_with(whole):
    roles = ["student", "teacher"] if whole.teacher == "written" else ["student"]
    assert whole.run.calls == roles * ROUNDS
    rows = [json.loads(line) for text in whole.files.values() for line in text.splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(STEPS) for _ in range(ROWS)]
    assert len({row["made_with"] for row in rows}) == 3 and list(whole.files) == [f"epoch-{n}.jsonl" for n in (1, 2, 3)]
    for number, row in enumerate(rows):
        # The weights of an epoch's first step: 0, 3 and 6.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), zlib.crc32(b"rollouts")), row["step"])
        key = jax.random.fold_in(key, number % ROWS)
        token = 8 + (row["step"] // EPOCH * EPOCH + int(jax.random.randint(key, (), 0, 1000))) % 32
        assert row["student_response"] == f"{token} {token}" and row["key"] == [0, 5]
        assert row["sampling"]["max_new_tokens"] == 4


def test_a_file_of_pairs_is_read_as_contrastive_records(whole, tmp_path):
    (tmp_path / "epoch.jsonl").write_text(whole.files["epoch-1.jsonl"])
    records = read_records(tmp_path / "epoch.jsonl")
    lines = [json.loads(line) for line in whole.files["epoch-1.jsonl"].splitlines()]
    for record, line in zip(records, lines, strict=True):
        assert record.prompt[0]["content"] == line["prompt"]
        assert record.response[0]["content"] == line["teacher_response"] != ""
        assert record.student_response[0]["content"] == line["student_response"] != ""


def test_stored_responses_keep_every_turn_that_carries_loss(whole):
    if whole.teacher == "written":
        return
    rows, batches = stored_rows(), make_batches(stored_rows(), ROWS, LENGTH, seed=1)
    for found, expected in zip(whole.batches, batches, strict=False):
        assert_same(found.teacher, expected)
    assert any(np.diff(mask.astype(int)).tolist().count(1) > 1 for mask in rows.response)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_resumes_at_any_step_and_writes_nothing_twice(whole, step, tmp_path):
    first = Run(tmp_path, teacher=whole.teacher)
    assert_same(first.take(0, step), whole.batches[:step])
    resumed = Run(tmp_path, teacher=whole.teacher)
    resumed.source.set_state(json.loads(json.dumps(first.source.get_state())))
    assert_same(resumed.take(step, STEPS), whole.batches[step:])
    assert texts(tmp_path) == whole.files
    assert len(first.calls) + len(resumed.calls) == len(whole.run.calls)


@pytest.mark.parametrize("torn", [b"", b'{"prompt": "to', b"\xff\n"])
@pytest.mark.parametrize("writes", [0, 1, 3, 4])
def test_a_run_stopped_while_it_writes_keeps_what_its_weights_wrote(whole, writes, torn, tmp_path):
    first, position = Run(tmp_path, teacher=whole.teacher, stop_after=writes), None
    with pytest.raises(Stopped):
        for step in range(STEPS):
            position = (step, first.source.get_state()) if step in (0, 2) else position
            first.take(step, step + 1)
    for path in sorted(tmp_path.glob("rollouts/*"))[-1:]:
        with path.open("ab") as file:
            file.write(torn)
    resumed = Run(tmp_path, teacher=whole.teacher)
    resumed.source.set_state(position[1])
    assert_same(resumed.take(position[0], STEPS), whole.batches[position[0] :])
    assert texts(tmp_path) == whole.files
    assert len(first.calls) + len(resumed.calls) <= len(whole.run.calls) + 1  # a round is kept whole or not at all


@pytest.mark.parametrize("change", ["weights", "identity"])
def test_what_other_weights_wrote_is_written_anew(whole, change, tmp_path):
    Run(tmp_path, teacher=whole.teacher).take(0, 1)
    before = texts(tmp_path)["epoch-1.jsonl"]
    other = Run(tmp_path, teacher=whole.teacher, identity=2 if change == "identity" else 1)
    other.source.next(state_at(0, change=1 if change == "weights" else 0))
    assert len(other.calls) == len(whole.run.calls) // ROUNDS * 2
    after = texts(tmp_path)["epoch-1.jsonl"]
    assert len(after.splitlines()) == len(before.splitlines()) == EPOCH * ROWS and after != before


@pytest.mark.parametrize("damage", ["gone", "short", "another's"])
def test_a_run_that_finds_its_epoch_damaged_says_so(whole, damage, tmp_path):
    run = Run(tmp_path, teacher=whole.teacher)
    run.take(0, 4)
    path = tmp_path / "rollouts" / "epoch-2.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(
            "".join(lines[:-1]) if damage == "short" else "".join(lines).replace('made_with": ', 'made_with": 1')
        )
    step = 6 if damage == "short" else 5
    with pytest.raises(InputError, match=rf"epoch-2.jsonl: the answers of step {step} are not there"):
        Run(tmp_path, teacher=whole.teacher).source.set_state(run.source.get_state())
