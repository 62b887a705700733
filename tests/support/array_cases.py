"""One call of every function of `numerics` that takes arrays: its arrays, and what else it takes.

The numbers are exact in bfloat16, so that every type holds the same ones.
"""

import inspect
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

import numpy as np

from streamgauge import numerics
from streamgauge.numerics import (
    ard,
    arrays,
    bridge,
    correlation,
    exact_tests,
    inference,
    infonce,
    logit_components,
    metrics,
    nulls,
    row_metric,
    sensitivity,
    shared_dimensions,
    spectra,
    subspace,
    token_sets,
    transport,
)

RNG = np.random.default_rng(0)
N, D, K, S = 12, 6, 3, 2


class Case(NamedTuple):
    """A function, its arguments that are arrays, and the others by name."""

    call: Any
    given: dict[str, Any]
    rest: dict[str, Any]


def short(x) -> np.ndarray:
    """Floats rounded to the eight bits of precision that bfloat16 has, as float64."""
    x = np.asarray(x, np.float32)
    return ((x.view(np.uint32) >> 16) << 16).view(np.float32).astype(np.float64)


def normal(*shape):
    return short(RNG.normal(size=shape))


def uniform(*shape):
    return short(RNG.uniform(0.5, 3, shape))


def symmetric(n, p):
    root = normal(n, p, 2 * p)
    made = short(root @ root.swapaxes(1, 2) / p + 2 * np.eye(p))
    return np.triu(made) + np.triu(made, 1).swapaxes(1, 2)


def covariance(x):
    made = spectra.StreamingCovariance(D)
    made.update(x)
    return made.mean, made.covariance(), made.eigenvalues(centred=False)


def covariance_without_sinks(h):
    made = spectra.SinkAwareCovariance(D)
    made.update(h)
    return tuple(part.eigenvalues() for part in made.finish().values())


def structured(covariance, e):
    metric = row_metric.RowMetric.whitened_structured(covariance)
    return metric.factors, metric.trace(), metric.quad_form(e)


def fisher(name):
    """A method of a metric whose factors are of the kind of its operand."""

    def call(packed, x, **rest):
        metric = row_metric.RowMetric.behavioral_fisher(packed, D)
        return metric.factors, metric.trace(), getattr(metric, name)(x, **rest)

    return call


def clouds(name):
    """A method of token clouds that are of the kind of its argument."""

    def call(x, y, log_lengthscale):
        made = ard.Clouds([(x, y), (y, x)])
        return getattr(made, name)(log_lengthscale)

    return call


PACKED, ERRORS = normal(N, D * S), normal(N, D)
A, A_HAT, MEAN = normal(4, N, D), normal(4, N, D), normal(D)
PAIR, BASIS = (normal(N, K), normal(N, K)), subspace.random_subspace(D, K, 0)
TIMES, FLAGS = RNG.integers(1, 4, (5, N)), [RNG.random(N) < 0.5 for _ in range(2)]
LOGITS = [normal(N, 20) for _ in range(2)]
LOG_P = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in LOGITS]
TRAIN = [normal(40, K) for _ in range(4)]
QUICK = {"critic": "separable", "width": 2, "hidden": 8, "steps": 5, "batch_size": 8}

CASES: dict[str, Case] = {}


def case(function, given, call=None, **rest):
    module = function.__module__.rpartition(".")[2]
    CASES[f"{module}.{function.__qualname__}"] = Case(call or function, given, rest)


for of_tokens in (
    metrics.squared_error_per_token,
    metrics.dot_per_token,
    metrics.cosine_per_token,
    metrics.relative_error_per_token,
    metrics.mse,
    metrics.cosine,
    metrics.relative_error,
):
    case(of_tokens, {"a": A, "a_hat": A_HAT})
case(metrics.squared_norm_per_token, {"a": A})
for of_variance in (metrics.r_squared, metrics.nmse):
    case(of_variance, {"a": A, "a_hat": A_HAT, "mean": MEAN})
for of_totals in (metrics.nmse_from_totals, metrics.r_squared_from_totals):
    case(of_totals, {"sse": uniform(5), "sst": uniform(5)})
case(metrics.mse_from_totals, {"sse": uniform(5), "n_tokens": TIMES[0, :5]}, d_model=4)
LOSSES = {"l_orig": uniform(N), "l_recon": uniform(N)}
case(metrics.loss_recovered, LOSSES)
case(metrics.loss_score, LOSSES | {"l_ablated": short(uniform(N) + 4)})
case(metrics.ce_rec, LOSSES | {"weights": TIMES[0]}, how="ratio_of_totals")
case(metrics.ce_loss_score, LOSSES | {"l_ablated": short(uniform(N) + 4), "weights": TIMES[0]})
case(metrics.entropy_rate_bits, {"firing_rates": uniform(3, 8) / 4})
case(metrics.log_probabilities, {"logits": LOGITS[0]})
case(metrics.cross_entropy_per_position, {"log_q": short(LOG_P[0]), "labels": np.arange(N)})
case(metrics.kl_per_position, {"log_p": short(LOG_P[0]), "log_q": short(LOG_P[1])})
case(metrics.kl_from_logits, dict(zip(("logits", "logits_patched"), LOGITS, strict=True)))
case(metrics.divergence, {"p": uniform(3, 8), "q": uniform(3, 8)})

case(sensitivity.times_root_fisher, {"root": uniform(N, 20) / 4, "u": normal(N, 20)})
case(sensitivity.fisher_factor_apply, {"logits": LOGITS[0], "u": normal(N, 20)})
case(sensitivity.swd, {"g": normal(N, D), "delta": ERRORS})
case(sensitivity.quadratic, {"projected": normal(4, N, S)})
case(sensitivity.joint_quadratic, {"projected": normal(4, N, S)})
case(sensitivity.squared_trace_and_trace_of_square, {"probes": normal(N, D, S)})
case(sensitivity.fisher_euclidean_deviation, {"probes": normal(N, D, S)})
SQUARES = {"squared_trace": uniform(5), "trace_of_square": uniform(5)}
case(sensitivity.deviation_from_totals, SQUARES, d=D)

case(spectra.participation_ratio, {"eigenvalues": uniform(D)}, deflate=1)
case(spectra.effective_rank, {"singular_values": uniform(D)})
case(spectra.top_share, {"values": uniform(D)})
case(spectra.StreamingCovariance.update, {"x": A}, covariance)
H = normal(8, N, D) * np.where(np.arange(N) == 0, 64, 1)[:, None]
case(spectra.SinkAwareCovariance.update, {"h": H}, covariance_without_sinks)
case(token_sets.no_sink, {"norm": uniform(4, N)}, threshold=2.0)
case(token_sets.masks, {"norm": uniform(4, N)}, threshold=2.0)

case(inference.percentile_interval, {"replicates": uniform(50)}, value=1.0, n=9)
R2 = {"statistic": lambda s: metrics.r_squared_from_totals(s[..., 0], s[..., 1])}
case(inference.bootstrap, {"table": uniform(N, 2)}, resamples=50, **R2)
case(inference.standard_error, {"replicates": uniform(50)}, n=9)
case(inference.t_interval, {"values": uniform(5)})
ERROR_PARTS = ("value", "se_sequences", "df_sequences", "se_seeds", "df_seeds")
case(inference.combined, {name: uniform(4) for name in ERROR_PARTS})
TEST = {"value": uniform(4), "standard_error": uniform(4), "df": uniform(4)}
case(inference.tost, TEST, margin=2.0)
case(inference.k_star, {"k": np.array([8, 16, 32]), "ce_rec": short([0.1, 0.5, 0.9])}, target=0.7)
case(inference.k_star_curves, {"k": np.array([8, 16, 32]), "curves": uniform(4, 3)}, target=1.0)
case(inference.uncensored, {"k": np.array([8, 16, 32])}, found=np.inf)
case(nulls.central, {"draws": normal(30, 2)}, confidence=0.9)
case(nulls.rank_among, {"null": normal(19)}, value=0.5)
case(nulls.rank_from_top, {"drawn": normal(19)}, value=0.5)
case(correlation.ranks, {"x": normal(N), "counts": TIMES})
case(correlation.standardised, {"x": normal(N), "counts": TIMES})
case(correlation.demeaned, {"x": normal(N), "counts": TIMES}, groups=list("aabbccddaabb"))
case(exact_tests.paired, dict(zip("xy", FLAGS, strict=True)))

PROJECTIONS = {"w_q": normal(4, 3, 16), "w_k": normal(2, 3, 16)}
case(subspace.attention_subspace, PROJECTIONS, k_sub=4)
case(subspace.kernel_singular_values, PROJECTIONS)
case(subspace.projector_error, {"basis": normal(K, D)})
case(subspace.project, {"v": short(BASIS), "x": ERRORS})
case(subspace.similarity, {"v1": short(BASIS), "v2": short(BASIS[::-1])}, top=2)
case(subspace.ffn_alignment, {"w_gate": normal(8, D), "v": short(BASIS)})
STATES = {"target": ERRORS, "source": normal(N, D), "basis": short(BASIS)}
case(subspace.separation, STATES)
case(subspace.update_ratio, {"delta": ERRORS, "basis": short(BASIS)})
case(transport.transport_source, {"h_source": normal(5, D), "h_target": normal(7, D)})
case(bridge.fit, dict(zip(("z_en", "z_zh"), PAIR, strict=True)), ridge=0.1)
ORDERS = np.stack([RNG.permutation(N) for _ in range(3)])
case(bridge.permuted_r2, dict(zip(("z_en", "z_zh"), PAIR, strict=True)), orders=ORDERS)

LENGTHS = {"x": normal(5, D), "y": normal(6, D), "lengthscales": uniform(D)}
case(ard.mmd2_unbiased, LENGTHS)
CLOUDS = {"x": normal(5, D), "y": normal(6, D), "log_lengthscale": normal(D)}
for of_clouds in (ard.Clouds.start, ard.Clouds.sensitivity, ard.Clouds.value_and_gradient):
    case(of_clouds, CLOUDS, clouds(of_clouds.__name__))
case(shared_dimensions.structural_prior, {"basis": short(BASIS)})
case(shared_dimensions.basis_energy, {"basis": short(BASIS)})
case(shared_dimensions.shared, {"growth": normal(D), "permuted": normal(5, D)})
FIT = {"log_lengthscale": normal(D), "energy": uniform(D), "varying": np.ones(D, bool)}
case(shared_dimensions.overlap, FIT, k_sub=3)

case(row_metric.pack_probe_factors, {"probes": normal(N, S, D)})
case(row_metric.unpack_probe_factors, {"packed": PACKED}, p=D)
METRIC = row_metric.RowMetric
case(METRIC.whitened_structured, {"covariance": symmetric(N, D), "e": ERRORS}, structured)
for of_rows in (METRIC.whiten_residual_row, METRIC.loss, METRIC.quad_form, METRIC.apply):
    case(of_rows, {"packed": PACKED, "x": ERRORS}, fisher(of_rows.__name__))
case(METRIC.pullback, {"packed": PACKED, "x": normal(N, D, 2)}, fisher("pullback"))
case(METRIC.solve, {"packed": PACKED, "x": ERRORS}, fisher("solve"), ridge=0.5)

case(infonce.infonce, {"scores": normal(N, N)})
SIDES = ("x_train", "y_train", "x_test", "y_test")
case(infonce.information, dict(zip(SIDES, TRAIN, strict=True)), **QUICK)
PAIRS = {"x": TRAIN[0], "y": TRAIN[1], "test": np.arange(40) >= 30}
case(infonce.at_width, PAIRS, **QUICK)
case(
    infonce.saturation,
    {"widths": np.arange(1, 4), "values": uniform(3), "null": short(uniform(3) / 9)},
)
case(infonce.held_out, {"sequence": np.arange(N)})
case(logit_components.logit_basis, {"logits": LOGITS[0]}, components=2)
BASIS_OF_LOGITS = logit_components.logit_basis(LOGITS[0], 2)
case(logit_components.reduced_logits, {"logits": LOGITS[1]}, basis=BASIS_OF_LOGITS)
case(arrays.decode, {"stored": normal(N)})

#: Computed in float32 at least, and in the very type that is given; all others in float64.
IN_FLOAT32 = {
    *("metrics.log_probabilities", "metrics.kl_from_logits"),
    *("sensitivity.fisher_factor_apply", "infonce.information", "infonce.at_width"),
    *(f"ard.Clouds.{name}" for name in ("start", "sensitivity", "value_and_gradient")),
    *(name for name in CASES if name.startswith("row_metric.RowMetric")),
}
AS_GIVEN = {
    *("metrics.kl_per_position", "sensitivity.times_root_fisher", "infonce.infonce"),
    *("sensitivity.squared_trace_and_trace_of_square", "sensitivity.fisher_euclidean_deviation"),
}


def functions_of_arrays() -> set[str]:
    """Names of all functions and methods of the package that `arrays.either` has made."""
    found = set()
    for info in iter_modules(numerics.__path__):
        module = import_module(f"{numerics.__name__}.{info.name}")
        for place in (module, *(x for x in vars(module).values() if inspect.isclass(x))):
            for function in vars(place).values():
                own = getattr(function, "__module__", "") == module.__name__
                if own and hasattr(function, "__wrapped__") and inspect.isfunction(function):
                    found.add(f"{info.name}.{function.__qualname__}")
    return {name for name in found if not name.rpartition(".")[2].startswith("_")}
