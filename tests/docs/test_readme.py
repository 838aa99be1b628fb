"""The face: a README of one screen whose badges are true, links that lead somewhere, and examples that run."""

import re
import runpy
import tomllib
from pathlib import Path

import jax
import pytest

from selecttkd_jax.runs._identity import WHERE_AND_HOW

pytestmark = pytest.mark.one_stack
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")]


def badge(name):
    return re.search(r"<title>\w+: (.*)</title>", (ROOT / f"docs/badges/{name}.svg").read_text())[1]


def test_badges_say_what_the_package_says():
    versions = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"3\.\d+$", each)]
    assert badge("python") == " | ".join(versions)
    (jax_bound,) = [each for each in PROJECT["dependencies"] if each.startswith("jax>")]
    assert badge("jax") == f"{jax_bound.removeprefix('jax>=')} and newer"
    assert badge("license") == PROJECT["license"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_runs_names_what_may_change():
    (listed,) = re.findall(r"^## Resuming$(.*?)^## ", (ROOT / "docs/runs.md").read_text(), re.MULTILINE | re.DOTALL)
    for option in WHERE_AND_HOW - {"output"}:
        section, _, name = option.rpartition(".")
        known = [f"`{option}`", f"`[{option}]`"] if section != "training" else [f"`{name}`"]
        assert section == "engine" or any(each in listed for each in known), option
    assert "of an `[engine]`: all but `every`" in listed


def anchors_of(text):
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Those of docs/ are looked at by `make docs`."""
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", path.read_text()):
        target = (path.parent / link) if link else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors_of(target.read_text()), f"{path.name}: {link}#{anchor}"


def test_every_room_has_a_page_of_its_interface():
    """`make docs` looks for each public name."""
    pages = {path: path.read_text() for path in (ROOT / "docs/api").glob("*.md")}
    shown = set(re.findall(r"^::: selecttkd_jax\.(\w+)$", "\n".join(pages.values()), flags=re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "selecttkd_jax").glob("*/__init__.py")} - {"cli"}
    assert rooms <= shown, f"docs/api has no page for {rooms - shown}"
    assert all(f"api/{path.name}" in (ROOT / "mkdocs.yml").read_text() for path in pages)


def run_example(name, capsys):
    """What a script of examples/ prints."""
    path = ROOT / f"examples/{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def test_the_example_of_a_loop_learns(capsys):
    lines = run_example("loop", capsys).splitlines()
    divergence, tar = (
        [float(re.search(rf"{name} (\S+)", line)[1]) for line in lines] for name in ("divergence", "TAR")
    )
    assert divergence[-1] < 0.8 * divergence[0] and tar[-1] > 5 * tar[0]


def test_the_example_of_a_verifier_rejects_more_of_a_worse_student(capsys):
    found = re.findall(r"likely_enough +TAR (\S+)", run_example("verifier", capsys))
    rates = [float(rate) for rate in found]
    assert len(rates) == 4 and rates == sorted(rates, reverse=True) and rates[0] > 0.9 > 0.5 > rates[-1]


def test_the_example_of_a_method_learns(capsys):
    found = re.findall(r"'divergence': (\S+),", run_example("method", capsys))
    assert len(found) == 5 and float(found[-1]) < 0.6 * float(found[0])
