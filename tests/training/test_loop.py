"""The order of what the loop does, with parts that only write down when they are asked."""

import contextlib
import math
import signal
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax._signals import Interrupted, Signals
from selecttkd_jax.distill import LossSums
from selecttkd_jax.training import Frozen, LoopConfig, Report, TrainState, run_loop, stream_key

FAR = 10**6


class Log:
    """All parts of a loop at once; `events` has what was asked of them, in order."""

    def __init__(self, losses=None):
        self.events = []
        self.losses = losses or {}
        self.position = 0
        self.learned = []
        self.rows = []

    # The source.
    shapes = None

    def next(self, state):
        self.position += 1
        self.events.append(f"next {self.position}")
        return np.full((1,), self.position, np.float32)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def learn(self, row):
        self.learned.append(row["step"])

    # The others.
    def place(self, batch):
        self.events.append(f"place {int(batch[0])}")
        return batch

    def step(self, state, frozen, batch):
        number = int(batch[0])
        self.events.append(f"step {number}")
        loss = jnp.float32(self.losses.get(number, 1.0))
        sums = replace(LossSums.zeros(), loss=loss, count=jnp.float32(1.0))
        state = replace(state, step=state.step + 1)
        return state, {"sums": sums, "grad_norm": jnp.float32(1.0), "applied": jnp.isfinite(loss)}

    def write(self, row):
        self.events.append(f"row {row['step']}")
        self.rows.append(row)

    def complete(self, step, numbers):
        self.events.append(f"complete {step}")
        return {"step": step} | numbers

    def flush(self):
        pass

    def write_csv(self):
        pass

    latest_step = None

    def save(self, state, position, checks=None, *, pending=()):
        self.latest_step = int(state.step)
        left = f", without {' '.join(pending)}" if pending else ""
        self.events.append(f"save {int(state.step)} at {position['position']}{left}")


@dataclass
class Counting:
    """An evaluator that says how often it was asked, at which interval."""

    name: str
    every: int
    log: Log
    asked: int = 0

    def __call__(self, params):
        self.asked += 1
        self.log.events.append(f"evaluate {self.name}")
        return {"asked": float(self.asked)}


def start(step=0):
    return TrainState(jnp.int32(step), {}, (), jax.random.key(0))


def run(log, evaluators=(), first=0, explain=lambda batch: "", report=None, signals=None, pending=(), **config):
    return run_loop(
        start(first),
        Frozen(),
        train_step=log.step,
        source=log,
        place=log.place,
        evaluators=evaluators,
        writer=log,
        checkpoints=log,
        learning_rate=optax.constant_schedule(0.5),
        config=LoopConfig(**config),
        on_step=lambda step, last, row: log.events.append(f"shown {step}"),
        explain=explain,
        report=report,
        signals=signals,
        pending=pending,
    )


def test_a_step_starts_before_the_one_before_it_is_looked_at():
    log = Log()
    run(log, steps=6, save_every=4)
    told = [[f"row {step}", f"shown {step}"] for step in range(7)]
    assert log.events == [
        *("next 1", "place 1", "step 1", "next 2", "place 2"),
        *("step 2", "next 3", "place 3", *told[1]),
        *("step 3", "next 4", "place 4", *told[2]),
        # A checkpoint waits, and no batch has been taken ahead of it.
        *("step 4", *told[3], "row 4", "save 4 at 4", "shown 4"),
        *("next 5", "place 5", "step 5", "next 6", "place 6"),
        *("step 6", *told[5], "row 6", "save 6 at 6", "shown 6"),
    ]


def test_where_a_model_writes_each_row_has_what_was_written_for_its_step():
    log = Log()

    def report(step):
        log.events.append(f"report {step}")
        return Report({"rollouts/length": 10.0 * step} if step != 2 else {}, 0.0 if step == 2 else 1e-9)

    run(log, [Counting("look", 3, log)], report=report, steps=4, save_every=FAR)
    turns = [[f"next {at}", f"place {at}", f"report {at}", f"step {at}", f"row {at}", f"shown {at}"] for at in range(5)]
    turns[3].insert(4, "evaluate look")
    turns[4].insert(4, "evaluate look")
    # Text waits for the parameters, so no batch is taken ahead.
    assert [event for event in log.events if "save" not in event] == [
        *("evaluate look", "row 0", "shown 0"),
        *(event for turn in turns[1:] for event in turn),
    ]
    assert [row.get("rollouts/length") for row in log.rows] == [None, 10, None, 30, 40]
    for row in log.rows[1:]:
        assert row["learning_seconds"] == row["step_seconds"] - (row["step"] != 2) * 1e-9


def test_rows_of_stored_text_are_what_they_were():
    log = Log()
    run(log, steps=2)
    assert set(log.rows[0]) == {
        *("step", "divergence", "tar", "tar_pooled", "mean_weight", "loss", "tokens"),
        *("grad_norm", "learning_rate", "step_seconds", "tokens_per_second"),
    }


@pytest.mark.parametrize("bad", [3, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_caught_before_a_checkpoint_would_hold_it(bad, value):
    log = Log(losses={bad: value})
    with pytest.raises(InputError, match=f"step {bad}: loss {value}"):
        run(log, steps=8, save_every=4, max_skipped=0)
    assert not any(event.startswith("save") for event in log.events)
    assert f"row {bad - 1}" in log.events and f"row {bad}" not in log.events


def test_evaluators_have_intervals_of_their_own_and_begin_and_end_every_run():
    log = Log()
    often, seldom = Counting("often", 2, log), Counting("seldom", 3, log)
    run(log, [often, seldom], steps=7, save_every=FAR)
    rows = {row["step"]: row for row in log.rows}
    assert [step for step in rows if "often/asked" in rows[step]] == [0, 2, 4, 6, 7]
    assert [step for step in rows if "seldom/asked" in rows[step]] == [0, 3, 6, 7]
    assert log.learned == [0, 2, 3, 4, 6, 7]
    # A source learns before it is asked for the next batch.
    assert log.events.index("next 3") > log.events.index("row 2")


def test_a_resumed_loop_takes_the_steps_that_are_left():
    log = Log()
    log.position = 4
    state = run(log, [Counting("held_out", FAR, log)], first=4, steps=6, save_every=FAR)
    assert int(state.step) == 6
    assert [row["step"] for row in log.rows] == [5, 6] and "held_out/asked" in log.rows[-1]
    assert run(log, first=6, steps=6).step == 6  # a finished one: nothing


def test_streams_of_randomness_go_by_their_names():
    key = jax.random.key(7)
    names = ("verification", "adapters", "rollouts", "mixture", "teacher rollouts")
    data = {name: jax.random.key_data(stream_key(key, name, 3)).tolist() for name in names}
    assert len({tuple(value) for value in data.values()}) == len(names)
    # The two that are older than the rule keep their numbers: runs that exist resume as they began.
    for number, name in enumerate(names[:2]):
        expected = jax.random.fold_in(jax.random.fold_in(key, number), 3)
        assert data[name] == jax.random.key_data(expected).tolist()
    assert jax.random.key_data(stream_key(key, "rollouts", 4)).tolist() != data["rollouts"]


def test_what_is_said_of_a_broken_loss_names_the_batch_and_what_is_known_of_the_cause():
    class Described(Log):
        def describe(self, step):
            return f"rows of step {step}"

    seen = []

    def explain(batch):
        seen.append(int(batch[0]))
        return "the teacher's logits are not finite"

    log = Described(losses={3: math.nan})
    with pytest.raises(InputError, match=r"step 3 \(rows of step 3\): loss nan, .*: the teacher's logits are not fin"):
        run(log, explain=explain, steps=8, save_every=FAR, max_skipped=0)
    assert seen == [3]
    with pytest.raises(
        InputError,
        match=r"step 3: loss nan, gradient norm 1.0; 1 step in a row skipped .*: lower optimizer.learning_rate",
    ):
        run(Log(losses={3: math.nan}), steps=8, save_every=FAR, max_skipped=0)


def test_skipped_steps_are_counted_and_no_checkpoint_is_made_among_them(caplog):
    log = Log(losses={3: math.nan, 4: math.inf, 6: math.nan})
    run(log, steps=8, save_every=4, max_skipped=2)
    assert [row["step"] for row in log.rows if "skipped" in row] == [3, 4, 6]
    assert all(math.isfinite(value) for row in log.rows for value in row.values())
    assert [event for event in log.events if event.startswith("save")] == ["save 5 at 5", "save 8 at 8"]
    assert "step 6: loss nan" in caplog.text and "skipped, 3 so far" in caplog.text
    with pytest.raises(InputError, match="step 5: .* 3 steps in a row skipped"):
        run(Log(losses={3: math.nan, 4: math.inf, 5: math.nan}), steps=8, max_skipped=2)


class Told(Signals):
    """A signal that comes during a step, or during the evaluation after it."""

    def __init__(self, step, *, evaluating=False):
        super().__init__()
        self.opened = True
        self._step, self._now, self._evaluating = step, 0, evaluating

    def reached(self, step):
        self._now = step
        self.received = signal.SIGTERM if step >= self._step and not self._evaluating else None
        return super().reached(step)

    @contextlib.contextmanager
    def released(self):
        if self._evaluating and self._now == self._step:
            raise Interrupted(signal.SIGTERM)
        yield


class Repeatable(Counting):
    repeatable = True


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_run_that_is_told_to_end_saves_the_step_it_is_at_and_leaves_what_can_be_asked_again(evaluating):
    log = Log()
    look, held_out = Counting("look", 3, log), Repeatable("held_out", 3, log)
    with pytest.raises(Interrupted, match="SIGTERM: step 3 is saved"):
        run(log, [held_out, look], signals=Told(3, evaluating=evaluating), steps=8, save_every=FAR)
    assert log.events[-4:] == ["evaluate look", "row 3", "save 3 at 3, without held_out", "shown 3"]
    assert log.learned == [0]
    again = Log()
    again.position = 3
    evaluators = [Repeatable("held_out", 3, again), Counting("look", 3, again)]
    run(again, evaluators, first=3, pending=("held_out",), steps=4)
    assert again.events[:3] == ["evaluate held_out", "complete 3", "next 4"] and again.learned == [3, 4]


def test_a_signal_between_evaluations_is_honoured_after_its_step():
    log = Log()
    with pytest.raises(Interrupted, match="step 5 is saved"):
        run(log, [Repeatable("held_out", FAR, log)], signals=Told(5), steps=8, save_every=FAR)
    assert log.events[-5:] == ["row 4", "shown 4", "row 5", "save 5 at 5", "shown 5"]


def test_text_that_a_signal_interrupts_is_written_again():
    class Writing(Log):
        def next(self, state):
            batch = super().next(state)
            if self.position == 3:
                raise Interrupted(signal.SIGINT)
            return batch

    log, signals = Writing(), Told(FAR)
    with pytest.raises(Interrupted, match="step 2 is saved"):
        run(log, signals=signals, report=lambda step: Report({}, 0.0), steps=8, save_every=FAR)
    assert log.events[-2:] == ["next 3", "save 2 at 2"]


def test_a_student_that_diverges_is_stopped_before_it_is_saved():
    log, values = Log(), iter([2.0, 1.0, 1.4, 1.6])
    held_out = Counting("held_out", 2, log)
    held_out.__class__ = type("Rising", (Counting,), {"__call__": lambda self, params: {"kl": next(values)}})
    with pytest.raises(InputError, match="step 6: held_out/kl is 1.6, more than 1.5 times its lowest so far, 1 "):
        run(log, [held_out], steps=8, save_every=2, stop_above=1.5)
    assert [event for event in log.events if event.startswith("save")] == ["save 2 at 2", "save 4 at 4"]


@pytest.mark.parametrize("due", ["save", "evaluation", "end"])
def test_a_state_that_an_update_broke_is_seen_before_anything_is_made_of_it(due):
    class Breaking(Log):
        def step(self, state, frozen, batch):
            state, metrics = super().step(state, frozen, batch)
            value = jnp.nan if int(batch[0]) == 4 else 1.0
            return replace(state, params={"kernel": jnp.full((2,), value, jnp.float32)}), metrics

    log = Breaking()
    intervals = {"save": (8, 4, FAR), "evaluation": (8, FAR, 4), "end": (4, FAR, FAR)}
    steps, save_every, every = intervals[due]
    with pytest.raises(InputError, match="step 4: the loss was finite, but the update left params/kernel with NaN"):
        run(log, [Counting("held_out", every, log)], steps=steps, save_every=save_every)
    assert not any(event.startswith("save") for event in log.events)
    assert log.events.count("evaluate held_out") == 1  # before the first step
