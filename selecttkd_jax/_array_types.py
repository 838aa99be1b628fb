"""Array types that name their axes.

Axis letters, everywhere in this library: B batch, T sequence, N flattened positions, D model width, F MLP width,
H query heads, K key/value heads, E head dim, L layers, V vocabulary.
"""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "*positions V"]
PerToken = Float[Array, "*positions"]
PerSequence = Float[Array, " B"]
TokenIds = Int[Array, "B T"]
TokenMask = Bool[Array, "B T"]
HiddenStates = Float[Array, "B T D"]
HeadMatrix = Float[Array, "D V"]
Scalar = Float[Array, ""]
Key = Array
Params = dict[str, Any]
