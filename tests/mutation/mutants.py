"""All mutants, room by room."""

from tests.mutation import of_distill, of_losses, of_selection, of_shared

MUTANTS = [*of_losses.MUTANTS, *of_selection.MUTANTS, *of_distill.MUTANTS, *of_shared.MUTANTS]
