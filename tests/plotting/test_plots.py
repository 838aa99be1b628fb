import json

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.plotting import THEMES, _curves, _verdicts, plot_run, plot_verdicts

pytestmark = pytest.mark.one_stack
ROWS = [
    {"step": 0, "held_out/kl": 2.0, "held_out/tar_spec_5": 0.2},
    {"step": 1, "loss": 1.0, "divergence": 1.2, "tar": 0.5, "rollouts/tar_from_0": 0.3, "rollouts/tar_from_4": 0.2},
    {"step": 2, "loss": 0.9, "divergence": 1.1, "tar": 0.6, "rollouts/tar_from_0": 0.4},
    {"step": 3, "loss": 0.8, "divergence": 1.0, "tar": 0.7, "rollouts/tar_from_0": 0.8, "rollouts/tar_from_4": 0.6},
]
TOKENS = ["The", " cat", " costs", " $5", ".\n\nIt", " $sat$", " on\u2028", "the", " mat."]


def test_a_run_whose_model_wrote_is_drawn_for_light_and_for_dark_pages(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sample = {"step": 3, "by": "student", "tokens": TOKENS, "acceptance": [1.0] * 8 + [0.0]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    written = plot_run(tmp_path)
    names = [path.name for path in written]
    assert names == [f"{name}{theme.suffix}.png" for name in ("curves", "positions", "verdicts") for theme in THEMES]
    pictures = [path.read_bytes() for path in written]
    assert all(picture[:4] == b"\x89PNG" and len(picture) < 200_000 for picture in pictures)
    assert len(set(pictures)) == len(pictures)


def test_each_kind_of_text_is_shown_by_place_at_its_first_and_newest_look():
    assert _curves.rates_by_position(ROWS) == {
        "rollouts, step 1": {0: 0.3, 4: 0.2},
        "rollouts, step 3": {0: 0.8, 4: 0.6},
    }


def test_curves_lead_with_the_held_out_numbers():
    figure = _curves.draw_curves(ROWS, "run", THEMES[0])
    held_out, training, rate = figure.axes
    assert [line.get_label() for line in held_out.lines] == ["KL(teacher ‖ student)"]
    assert [line.get_label() for line in training.lines] == ["divergence", "loss: what is minimised"]
    assert [line.get_label() for line in rate.lines] == ["training batches", "held-out spec 5"]


@pytest.mark.parametrize("columns", [5, 9, 80])
def test_tokens_are_laid_out_whole_and_side_by_side(columns):
    pieces = _verdicts._lay_out(TOKENS, columns, most_lines=99)
    ends = {}
    for _, line, column, text in pieces:
        assert column == ends.get(line, 0)
        ends[line] = column + len(text)
    assert max(ends.values()) <= columns or columns == 5
    said = "".join(text for *_, text in pieces).replace(" ", "")
    assert columns == 5 or said == "".join(TOKENS).replace(" ", "").replace("\n", "").replace("\u2028", "")


def test_a_rejected_token_has_another_colour_and_a_line_under_it():
    pieces = _verdicts._lay_out(TOKENS, 80, most_lines=9)
    rejected = [index in (1, 5) for index in range(len(TOKENS))]
    theme = THEMES[0]
    axes = _verdicts._draw(pieces, rejected, [], False, 80, theme).axes[0]
    from matplotlib.colors import to_hex

    colors = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colors.count(theme.rejected) == 2 + 1 and len(axes.lines) == 2 + 1  # and in the legend
    assert f"{7 / 9:.0%} of 9 tokens accepted" in [text.get_text() for text in axes.texts]


def test_long_texts_are_cut_and_empty_ones_refused(tmp_path):
    pieces = _verdicts._lay_out(["word "] * 100, 20, most_lines=3)
    assert pieces[-1][3] == " …" and max(line for _, line, _, _ in pieces) == 2
    with pytest.raises(InputError, match="0 tokens"):
        plot_verdicts(tmp_path / "v.png", [], [])
    with pytest.raises(InputError, match="1 tokens and 2"):
        plot_verdicts(tmp_path / "v.png", ["a"], [1.0, 0.0])
