"""Ways to break what the rooms share: checks, and the names of mesh axes."""

from tests.mutation.mutant import Mutant

MUTANTS = [
    # Boundaries: the number at which a rule changes
    Mutant("_checks.py", "(values >= low)", "(values > low)", "the lowest number allowed refused"),
    Mutant("_checks.py", "else (values < high)", "else (values <= high)", "the bound itself allowed"),
    Mutant("_checks.py", "(values == 0) | (values == 1)", "values >= 0", "token ids taken for a mask"),
    Mutant("_checks.py", "if isinstance(value, bool) or not", "if not", "True taken for a count"),
    # Which devices' sums
    Mutant(
        "_mesh_axes.py",
        "value.ndim - drop]",
        "value.ndim]",
        "results with a vocabulary in their sharding",
    ),
]
