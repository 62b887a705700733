"""The two sets of tokens every number is taken over: all, and those that are no sinks.

A sink is a token that hoards activation: the first position of a row, or one whose norm exceeds 10
times the median (docs/definitions.md, "Tokens").
"""

from streamgauge.numerics.arrays import either

#: Every token, and those that are no sinks.
TOKEN_SETS = ("all", "no_sink")
#: A token is a sink when its norm exceeds this multiple of the median norm (or at position 0).
SINK_FACTOR = 10.0


def sink_threshold(median_norm):
    """The norm above which a token is a sink, of the median norm of all tokens, sinks included."""
    return SINK_FACTOR * median_norm


@either("norm")
def no_sink(norm, threshold: float):
    """Mask of the tokens that are no sinks: not at position 0 and norm at most `threshold`.

    Args:
        norm: norms of whole rows, (n, n_positions).
        threshold: see `sink_threshold`, in the unit of the norms.

    Returns:
        bool (n, n_positions).
    """
    keep = norm <= threshold
    keep[:, 0] = False
    return keep


@either("norm")
def masks(norm, threshold: float) -> dict:
    """Which tokens belong to each of `TOKEN_SETS`: bool (n, n_positions) each, see `no_sink`."""
    keep = no_sink(norm, threshold)
    return {"all": keep | True, "no_sink": keep}
