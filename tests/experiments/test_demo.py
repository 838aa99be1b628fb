import json
from pathlib import Path

import pytest
from demo.questions import QUESTIONS, count_right, judge

pytestmark = pytest.mark.one_stack
DATA = Path(__file__).parents[2] / "experiments" / "demo"
FRANCE, DOG = "What is the capital of France?", "Write one sentence about a dog."


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        (FRANCE, "The capital of France is Paris.", "right"),
        (FRANCE, "Paris", "right"),
        (FRANCE, "The capital of France is Lyon.", "wrong"),
        (FRANCE, "The capital of the capital of the capital of the capital of the capital of Paris", "broken"),
        (FRANCE, "", "broken"),
        (FRANCE, "}}{{ Paris :: ((( )))", "broken"),
        (FRANCE, "umbibimpulumiathedmanyenariosccibimbioxid Paris", "broken"),
        (DOG, "The dog ran home.", "right"),
        (DOG, "I like dogma.", "wrong"),
    ],
)
def test_answers_are_judged_by_what_they_hold_and_by_their_circles(question, answer, verdict):
    assert judge(question, answer) == verdict


def test_right_answers_are_counted():
    assert count_right({FRANCE: "It is Paris.", DOG: "A cat."}) == 1


def test_no_question_is_in_the_data():
    for name in ("prompts", "train", "held_out"):
        rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
        assert not {row["prompt"] for row in rows} & set(QUESTIONS)
