"""The list of mutants keeps up with the code: each of them still has its text to change, once."""

from pathlib import Path

import pytest

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

PACKAGE = Path(__file__).parents[2] / "selecttkd_jax"


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.meaning for mutant in MUTANTS])
def test_a_mutants_text_occurs_once_in_its_file(mutant: Mutant):
    assert (PACKAGE / mutant.path).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old


def test_no_two_mutants_are_the_same():
    assert len({mutant.meaning for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.path, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
