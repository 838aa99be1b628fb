"""docs/methods: every method has a page, its options are the code's, and its TOML is one that runs."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from selecttkd_jax.distill._named_verifiers import OF_ANOTHER, VERIFIERS
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import METHODS
from selecttkd_jax.runs import config_from_dict

pytestmark = pytest.mark.one_stack
PAGES = Path(__file__).parents[2] / "docs" / "methods"


def rows_of(page):
    """The table rows of a page that begin with a name in backticks: the name and its default."""
    return dict(re.findall(r"^\| `([a-z_.0-9]+)` \| ([^|]*?) \|", page, flags=re.MULTILINE))


def as_text(value):
    """As TOML has it."""
    return "left out" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_page_with_its_options_and_their_defaults(name):
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# {name}: ")
    assert f"]({name}.md)" in (PAGES / "README.md").read_text()
    method, found = METHODS[name](), rows_of(page)
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Sampling):
            own = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
            told = {one: own[one] for one in own if own[one] != getattr(Sampling, one)}
            told |= {"temperature": value.temperature, "max_new_tokens": value.max_new_tokens}
            for one, default in told.items():
                assert found[f"sampling.{one}"] == as_text(default), f"{name}: sampling.{one}"
        elif field.name != "name":
            assert found[field.name] == as_text(value), f"{name}: {field.name}"
    if method.divergence is not None:
        assert found["objective.divergence"] == method.divergence


@pytest.mark.parametrize("name", METHODS)
def test_the_toml_of_a_page_is_a_whole_configuration_of_its_method(name):
    (block,) = re.findall(r"```toml\n(.*?)```", (PAGES / f"{name}.md").read_text(), flags=re.DOTALL)
    config = config_from_dict(tomllib.loads(block), name)
    assert config.method.name == name and config.output == f"runs/{name}"


def test_the_toml_of_the_index_goes_with_any_method():
    pages = (PAGES / "README.md").read_text() + (PAGES.parent / "selection.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", pages, flags=re.DOTALL)
    whole = {"output": "run", "models": {"teacher": "teacher", "student": "student"}, "data": {"train": "rows.jsonl"}}
    assert blocks
    for block in blocks:
        config_from_dict(whole | tomllib.loads(block), "README.md")


def test_the_links_of_the_pages_lead_somewhere():
    for page in PAGES.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (PAGES / link).exists(), f"{page.name}: {link}"


def test_every_verifier_by_name_is_on_the_page_of_selection():
    page = (PAGES.parent / "selection.md").read_text()
    for name in {*VERIFIERS, *OF_ANOTHER}:
        assert f"| `{name}` |" in page, name
