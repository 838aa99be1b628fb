"""A method of your own: a frozen dataclass of options that puts a source and a loss together.

Command:   python examples/method.py        (after `pip install '.[train]'`)
Shows:     cross-entropy on the data fades into distillation over the first steps. docs/adding_a_method.md goes on.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selecttkd_jax import data, distill, losses, methods, models, selection, sharding, sources, training


@dataclass(frozen=True)
class FadingLabels:
    """loss = r CE + (1 - r) V D(p, q),   r = max(0, 1 - step / fade): both over the same tokens, so counts agree."""

    labels: training.OneStream
    teacher: training.OneStream
    fade: int

    def draw(self, key, batch):
        return self.teacher.draw(key, batch)

    def __call__(self, params, frozen, batch, draws, step):
        """Sums over a batch; `step` counts the finished ones."""
        share = jnp.maximum(0.0, 1.0 - step.astype(jnp.float32) / self.fade)
        labels, teacher = (loss(params, frozen, batch, draws, step) for loss in (self.labels, self.teacher))
        return replace(teacher, loss=share * labels.loss + (1.0 - share) * teacher.loss)


@dataclass(frozen=True)
class FadingKd:
    """Its page in `selecttkd_jax/methods` would also say what it reads, writes and checks, as `_kd.py` does."""

    fade: int = 20

    def build(self, parts: methods.Parts) -> training.Method:
        labels = distill.Objective(divergence=losses.cross_entropy, verifier=selection.accept_all, floor=1.0)
        teacher = parts.one_stream(parts.objective.build(divergence="forward_kl"))
        return training.Method(parts.stored, FadingLabels(parts.one_stream(labels), teacher, self.fade))


student = models.DecoderConfig(64, 16, 32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, init_scale=0.3)
teacher = replace(student, num_layers=2)
tokens = [row.astype(np.int32) for row in np.random.default_rng(0).integers(0, 64, (32, 16))]
rows = data.Rows(tokens, [np.arange(16) >= 4] * 32, max_length=16, read=32)
stored = sources.Stored(data.make_batches(rows, batch_size=8, max_length=16, seed=0), data.batch_shapes(8, 16))
pair, objective = training.Pair(student, teacher, vocab_size=64), distill.ObjectiveConfig(verifier="spec_k", k=5)
method = FadingKd().build(methods.Parts(pair, objective, stored, sharding.make_mesh(sharding.MeshConfig())))
state = training.init_state(models.init_params(student, jax.random.key(1)), optax.adam(1e-2), seed=0)
frozen = training.Frozen(models.init_params(teacher, jax.random.key(0)))
step = training.make_train_step(method.loss, optax.adam(1e-2))
for number in range(41):
    state, metrics = step(state, frozen, method.source.next(state))
    if number % 10 == 0:
        print(number, {name: round(value, 4) for name, value in metrics["sums"].means().items()})
