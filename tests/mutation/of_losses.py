"""Ways to break the divergences."""

from tests.mutation.mutant import Mutant

MUTANTS = [
    Mutant(
        "losses/_kullback_leibler.py",
        "(forward_kernel, student_logits, teacher_logits)",
        "(reverse_kernel, student_logits, teacher_logits)",
        "forward KL in the wrong direction",
    ),
    Mutant(
        "losses/_kullback_leibler.py",
        "gradient = student.prob - teacher.prob",
        "gradient = teacher.prob - student.prob",
        "forward KL's gradient with the wrong sign",
    ),
    Mutant(
        "losses/_kullback_leibler.py",
        "(finite(log_ratio) - finite(value)[..., None])",
        "finite(log_ratio)",
        "reverse KL's gradient not centred",
    ),
    Mutant(
        "losses/_closed_form.py",
        "jnp.maximum(jnp.sum(a.prob * log_ratio, axis=-1), 0.0)",
        "jnp.sum(a.prob * log_ratio, axis=-1)",
        "a divergence below zero",
    ),
    Mutant(
        "losses/_closed_form.py",
        "jnp.where(a.prob > 0, a.log_prob - log_b, 0.0)",
        "a.log_prob - log_b",
        "masked vocabulary entries give NaN",
    ),
    Mutant(
        "losses/_closed_form.py",
        "    teacher_logits = jax.lax.stop_gradient(teacher_logits)\n",
        "    teacher_logits = student_logits\n",
        "the teacher forgotten",
    ),
    Mutant("losses/_closed_form.py", "logits.astype(jnp.float32)", "logits", "bfloat16 logits not upcast"),
    Mutant(
        "losses/_closed_form.py",
        "weighted_slope - q * jnp.sum(weighted_slope, axis=-1, keepdims=True)",
        "weighted_slope",
        "softmax Jacobian without its second term",
    ),
    Mutant(
        "losses/_skew.py",
        "m = alpha * p + (1 - alpha) * q",
        "m = (1 - alpha) * p + alpha * q",
        "SKL's mixture the other way round",
    ),
    Mutant(
        "losses/_skew.py",
        "m = (1 - alpha) * p + alpha * q",
        "m = alpha * p + (1 - alpha) * q",
        "SRKL's mixture the other way round",
    ),
    Mutant("losses/_skew.py", "if not detach_mixture:", "if detach_mixture:", "detached and whole mixture swapped"),
    Mutant(
        "losses/_skew.py",
        "-(1 - alpha) * jnp.where(",
        "-1.0 * jnp.where(",
        "SKL's gradient too steep by 1 / (1 - alpha)",
    ),
    Mutant(
        "losses/_mixtures.py",
        "jnp.where(normal, jnp.log(jnp.where(normal, mixture, 1.0)), larger)",
        "jnp.log(mixture)",
        "mixture underflow gives infinities",
    ),
    Mutant(
        "losses/_jensen_shannon.py",
        "share * from_teacher + (1 - share) * from_student",
        "(1 - share) * from_teacher + share * from_student",
        "JSD's weights swapped",
    ),
    Mutant(
        "losses/_distances.py",
        "0.5 * jnp.sum(jnp.abs(difference), axis=-1), ",
        "jnp.sum(jnp.abs(difference), axis=-1), ",
        "total variation without its half",
    ),
    Mutant("losses/_distances.py", "-0.25 / jnp", "-0.5 / jnp", "Hellinger's gradient doubled"),
    Mutant("losses/_adaptive.py", "mass <= mu if boundary", "mass < 0.9 * mu if boundary", "AKL's head too small"),
    Mutant(
        "losses/_adaptive.py",
        'above = p >= threshold if boundary == "tail" else p > threshold',
        "above = p > threshold",
        "AKL's boundary token on the wrong side",
    ),
    Mutant("losses/_target.py", "pair_q[..., 0] < 0.5", "pair_q[..., 0] >= 0.0", "TCKD's gradient cancels"),
    Mutant(
        "losses/_target.py",
        "jnp.where(target, -jnp.inf, log_probs - finite_rest[..., None])",
        "log_probs - finite_rest[..., None]",
        "NCKD keeps the target",
    ),
    Mutant(
        "losses/_cross_entropy.py",
        "jnp.sum(jnp.where(vocabulary == token_ids.astype(jnp.int32)[..., None], values, 0.0), axis=-1)",
        "jnp.sum(jnp.where(vocabulary == token_ids.astype(jnp.int32)[..., None] + 1, values, 0.0), axis=-1)",
        "labels off by one",
    ),
    # Found by review, and held since
    Mutant(
        "losses/_skew.py",
        "jnp.where(alpha > 0, q * ratio(p, m), p)",
        "q * ratio(p, m)",
        "a skew of zero forgets tokens that underflow",
    ),
    Mutant("losses/_adaptive.py", " | (mu >= 1)", "", "all mass in the head, but for rounding"),
    # Guards: what stands where a formula alone would give NaN, infinity or noise
    Mutant(
        "losses/_distances.py",
        "off_tip = value > 4 * jnp.finfo(value.dtype).eps",
        "off_tip = value > 0",
        "Hellinger's gradient of full size between equal distributions",
    ),
    Mutant("losses/_distances.py", "nothing = values <= 0", "nothing = values < 0", "a root without a derivative at 0"),
    Mutant(
        "losses/_distances.py",
        "jnp.minimum(0.5 * jnp.sum(jnp.abs(difference), axis=-1), 1.0)",
        "0.5 * jnp.sum(jnp.abs(difference), axis=-1)",
        "total variation above 1 by rounding",
    ),
    Mutant("losses/_adaptive.py", " | (p == best)", "", "AKL's top token may leave the head"),
    Mutant(
        "losses/_adaptive.py",
        "jnp.where(share > 0, share * divergence, 0.0)",
        "share * divergence",
        "an infinite divergence with a share of zero gives NaN",
    ),
    Mutant(
        "losses/_adaptive.py",
        "jax.lax.stop_gradient(ratio(head_gap, jnp.sum(gap, axis=-1)))",
        "ratio(head_gap, jnp.sum(gap, axis=-1))",
        "second derivatives go through AKL's shares",
    ),
    Mutant(
        "losses/_skew.py",
        "log_m = jax.lax.stop_gradient(log_m)",
        "pass",
        "second derivatives go through the detached mixture",
    ),
    Mutant(
        "losses/_closed_form.py",
        "gradient = _evaluate_with_gradient(kernel, *primals)\n    return value",
        "gradient = kernel(distribution(primals[0]), distribution(primals[1]), *primals[2])\n    return value",
        "a value that comes with a gradient is differentiated as it was computed",
    ),
    Mutant(
        "losses/_closed_form.py",
        "jnp.minimum(values, 0.5 * jnp.finfo(values.dtype).max)",
        "values",
        "infinite slopes",
    ),
    Mutant(
        "losses/_mixtures.py",
        "jnp.log(jnp.where(normal, mixture, 1.0))",
        "jnp.log(mixture)",
        "second derivatives of a mixture beside excluded tokens are NaN",
    ),
    Mutant(
        "losses/_mixtures.py",
        "jnp.where(denominator > 0, denominator, 1.0)",
        "denominator",
        "a ratio of nothing to nothing is NaN",
    ),
    Mutant(
        "losses/_cross_entropy.py",
        "jnp.where(log_p > -jnp.inf, log_p, 0.0)",
        "log_p",
        "the entropy of excluded tokens is NaN",
    ),
    Mutant(
        "losses/_target.py",
        "jnp.where(rest > -jnp.inf, rest, 0.0)",
        "rest",
        "NCKD is NaN where nothing but the target is possible",
    ),
    # Which argument
    Mutant("losses/_jensen_shannon.py", "slope = (1 - beta) *", "slope = beta *", "JSD's slope with the other share"),
    Mutant("losses/_target.py", "(pair_p - pair_q)[..., 1]", "(pair_q - pair_p)[..., 1]", "TCKD's sign next to 1"),
]
