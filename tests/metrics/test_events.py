"""What happened to a run: warnings wait for its directory, a failure is told, and a refused start leaves nothing."""

import json
import logging

import pytest

from selecttkd_jax.metrics import EventLog

pytestmark = pytest.mark.one_stack


def events_in(directory):
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def test_warnings_from_before_there_is_a_directory_are_kept_and_the_failure_is_told(tmp_path):
    logger = logging.getLogger("selecttkd_jax.somewhere")
    with pytest.raises(ValueError), EventLog().listening() as events:
        logger.warning("%d rows are odd", 3)
        logger.info("this is no event")
        events.open(tmp_path)
        events.tell("start", step=0)
        raise ValueError("no more\nof this")
    logger.warning("nobody listens")
    told = events_in(tmp_path)
    assert [event.pop("time")[-6:] for event in told] == ["+00:00"] * 3
    assert told == [
        {"event": "warning", "message": "3 rows are odd"},
        {"event": "start", "step": 0},
        {"event": "stopped", "why": "ValueError", "message": "no more"},
    ]


def test_a_start_that_is_refused_and_a_process_that_writes_nothing_leave_no_file(tmp_path):
    with pytest.raises(ValueError), EventLog().listening():
        raise ValueError("refused")
    with EventLog().listening() as events:
        events.open(tmp_path, writes=False)
        events.tell("start")
    assert not list(tmp_path.iterdir())
