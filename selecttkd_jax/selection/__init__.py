"""Which tokens count: acceptance of each position, and the weight that follows from it.

Pure functions, student first, teacher second, never differentiated.
"""

from selecttkd_jax.selection.verifiers import accept_all, greedy_top_k, spec_k
from selecttkd_jax.selection.weights import TokenWeights, token_weights
