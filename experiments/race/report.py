"""Makes the race's tables in experiments/README.md, and its plot, from the CSV files that run.py wrote.

python experiments/race/report.py
"""

import csv
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1]
README = EXPERIMENTS / "README.md"
RESULTS = EXPERIMENTS / "results"
PLOT = RESULTS / "race_chunks.png"
BEGIN, END = "<!-- race: made by race/report.py -->", "<!-- race: end -->"

Row = dict[str, str]
SHAPE = ("positions", "student_width", "teacher_width", "vocabulary")
TIME_HEAD = ("median s", "least s", "processor s", "by ours")
LAST_HEAD = ("compiled temporary MiB", "difference")


def main() -> int:
    """Rewrites the part of the README between the two marks, and the plot."""
    tables = render(RESULTS)
    if not tables:
        print(f"report: error: {RESULTS} holds no race_*.csv; `make bench` writes them", file=sys.stderr)
        return 2
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
    if rows := read(RESULTS / "race_chunks.csv"):
        plot(rows, PLOT)
    print(f"{README} and {PLOT}")
    return 0


def render(results: Path) -> str:
    """All tables as Markdown."""
    sections = {
        "race_loss.csv": loss_tables,
        "race_step.csv": step_table,
        "race_selection.csv": selection_table,
        "race_chunks.csv": chunk_tables,
    }
    parts = []
    for name, section in sections.items():
        if rows := read(results / name):
            parts.append(f"{section(rows)}\n\n{source(name, rows)}")
    return "\n\n".join(parts)


def loss_tables(rows: list[Row]) -> str:
    """One table per shape and mask; above each first one's, what the processes hold that compute nothing."""
    tables = ["### Loss, verification and gradients"]
    for shape, group in by_shape(rows):
        baselines = {library(row["contender"]): float(row["peak_mib"]) for row in group if not row["median_s"]}
        held = ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in baselines.items())
        tables.append(f"**{shape}.** Baselines: {held}.")
        for mask in dict.fromkeys(row["mask"] for row in group):
            raced = [row for row in group if row["mask"] == mask and row["median_s"]]
            counted = "All positions count" if mask == "all" else f"{raced[0]['counted']} positions count"
            tables.append(f"{counted}:\n\n{loss_table(raced, baselines)}")
    return "\n\n".join(tables)


def loss_table(rows: list[Row], baselines: dict[str, float]) -> str:
    """The contenders at one shape with one mask."""
    ours = number(rows, "ours", "median_s")
    products = [float(row["median_s"]) for row in rows if row["contender"] == "jax_products"]
    by_products = ["by jax_products"] if products else []
    head = ["contender", *TIME_HEAD, *by_products, "peak MiB", "above baseline", *LAST_HEAD]
    body = []
    for row in rows:
        seconds, peak = float(row["median_s"]), float(row["peak_mib"])
        body.append(
            [
                row["contender"],
                *times(row, ours),
                *(f"{seconds / bare:.2f}" for bare in products),
                f"{peak:,.0f}",
                f"{peak - baselines[library(row['contender'])]:,.0f}",
                mebibytes(row["compiled_temp_mib"]),
                row["difference"],
            ]
        )
    return table(head, body)


def step_table(rows: list[Row]) -> str:
    """A whole training step."""
    ours = number(rows, "ours", "median_s")
    body = [
        [
            row["contender"],
            *times(row, ours),
            f"{float(row['peak_mib']):,.0f}",
            mebibytes(row["compiled_temp_mib"]),
            row["difference"],
        ]
        for row in rows
    ]
    return f"### A whole training step\n\n{table(['contender', *TIME_HEAD, 'peak MiB', *LAST_HEAD], body)}"


def selection_table(rows: list[Row]) -> str:
    """What verification adds."""
    base = rows[0]
    body = [
        (
            row["contender"],
            f"{float(row['median_s']):.3f}",
            row["seconds_ratio"],
            row["cpu_seconds_ratio"],
            f"{float(row['peak_mib']):,.0f}",
            f"{float(row['peak_mib']) / float(base['peak_mib']):.3f}",
            mebibytes(row["compiled_temp_mib"]),
        )
        for row in rows
    ]
    head = ("verifier", "median s", "wall ratio", "processor ratio", "peak MiB", "ratio", "compiled temporary MiB")
    return f"### What verification adds to our step\n\n{table(head, body)}"


def chunk_tables(rows: list[Row]) -> str:
    """Time and memory over the chunk size, one table per shape."""
    tables = [f"### Over the chunk size\n\n![time and memory over the chunk size]({PLOT.relative_to(EXPERIMENTS)})"]
    for shape, group in by_shape(rows):
        body = [
            (
                row["chunk_size"],
                f"{float(row['median_s']):.2f}",
                f"{float(row['peak_mib']):,.0f}",
                mebibytes(row["compiled_temp_mib"]),
            )
            for row in group
        ]
        head = ("positions a chunk", "median s", "peak MiB", "compiled temporary MiB")
        tables.append(f"**{shape}**\n\n{table(head, body)}")
    return "\n\n".join(tables)


def plot(rows: list[Row], path: Path) -> None:
    """Time and compiled temporary memory over the chunk size, one curve per shape."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = figure.subplots(1, 2)
    columns = (("median_s", "seconds: loss, verification, gradients"), ("compiled_temp_mib", "compiled temporary, MiB"))
    for (shape, group), color in zip(by_shape(rows), ("#1f5fa8", "#d1600a"), strict=False):
        for axes, (column, title) in zip(panels, columns, strict=True):
            sizes = [int(row["chunk_size"]) for row in group]
            axes.plot(sizes, [float(row[column]) for row in group], color=color, marker="o", markersize=4, label=shape)
            axes.set_title(title)
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xlabel("positions a chunk")
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def by_shape(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) of every shape."""
    groups = groupby(rows, key=lambda row: tuple(int(row[name]) for name in SHAPE))
    return [("N = {:,}, D = {} and {}, V = {:,}".format(*shape), list(group)) for shape, group in groups]


def source(name: str, rows: list[Row]) -> str:
    """Where the numbers come from."""
    versions = dict.fromkeys(word for row in rows for word in row["versions"].split(", ") if word)
    facts = rows[0]
    rounds = dict.fromkeys(row["rounds"] for row in rows if row["median_s"])
    return (
        f"[results/{name}](results/{name}): {facts['cores']} cores of {facts['cpu']}, Python {facts['python']}, "
        f"{', '.join(versions)}; commit {facts['commit']}, {facts['date']}; medians of {' or '.join(rounds)} rounds."
    )


def library(contender: str) -> str:
    """Whose baseline a contender has."""
    return "jax" if contender == "ours" else contender.partition("_")[0]


def number(rows: list[Row], contender: str, column: str) -> float:
    """One number of one contender."""
    return next(float(row[column]) for row in rows if row["contender"] == contender)


def times(row: Row, ours: float) -> list[str]:
    """The columns of `TIME_HEAD`."""
    seconds = [f"{float(row[name]):.2f}" for name in ("median_s", "least_s", "cpu_s")]
    return [*seconds, f"{float(row['median_s']) / ours:.2f}"]


def mebibytes(value: str) -> str:
    """A figure that only JAX's contenders have."""
    return f"{float(value):,.0f}" if value else ""


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
