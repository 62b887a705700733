"""The figures of a study, declared once: what draws each, from which tables, under which title.

To add one, see docs/extending/figure.md.
"""

from collections.abc import Callable
from typing import NamedTuple

from streamgauge.base.entry import named


class Figure(NamedTuple):
    """A figure of a study.

    Attributes:
        module: below `streamgauge.report`; it holds the function of the figure's name (without
            ``crosslingual_``): tables and a title in, a Matplotlib figure out.
        category: its heading in the report.
        title: the text above it where the configuration gives none.
        table: the table of the study that it belongs to; None where its rule has its own inputs.
        files: names of the CSV files it draws, in the order of the function's arguments.
    """

    module: str
    category: str
    title: str
    table: str | None
    files: tuple[str, ...]


def _drawn(module: str, category: str, title: str, table: str | None = None, *files: str) -> Figure:
    """A figure that draws `files`, or the file of its table where none are named."""
    return Figure(module, category, title, table, files or (table,))


_GAP, _COST, _SPECTRA, _CROSS = "Proxy gap", "Sensitivity", "Spectra", "Cross-lingual"
FIGURES: dict[str, Figure] = {
    "proxy_gap": _drawn("score_figures", _GAP, "Reconstruction and behaviour over k", "grid"),
    "rate_distortion": _drawn("score_figures", _GAP, "Distortion against rate", "grid"),
    "pr_canyon": _drawn("score_figures", _SPECTRA, "Participation ratio by layer"),
    "loss_curves": _drawn("score_figures", "Training", "Training loss"),
    "calibration": _drawn(
        "sensitivity_figures",
        _COST,
        "Predicted and measured KL",
        "calibration",
        "calibration",
        "calibration_points",
    ),
    "objectives": _drawn("sensitivity_figures", "Scores", "Three objectives", "grid"),
    "leaderboard": _drawn(
        "sensitivity_figures", _COST, "Which proxy orders SAEs as behaviour does", "leaderboard"
    ),
    "attention": _drawn(
        "sensitivity_figures", _COST, "Attention-plan divergence after patching", "attention"
    ),
    "deltas": _drawn("scale_figures", _GAP, "Larger minus smaller model", "comparisons", "deltas"),
    "budgets": _drawn(
        "scale_figures", _GAP, "Scores over the training budget", "comparisons", "budgets"
    ),
    "kstar": _drawn(
        "scale_figures", _GAP, "Latents needed to recover behaviour", "comparisons", "kstar"
    ),
    "depth_profile": _drawn(
        "scale_figures", _SPECTRA, "Dimension and scores over depth", "depth_profile"
    ),
    "critics": _drawn(
        "scale_figures", _SPECTRA, "Dimension that mutual information sees", "critics"
    ),
    "verdict_calibration": _drawn(
        "verdict_figures",
        "Verdicts",
        "False positives and power of the verdicts",
        "verdict_calibration",
    ),
    "crosslingual_geometry": _drawn(
        "crosslingual_figures",
        _CROSS,
        "Attention subspaces over depth",
        "crosslingual",
        "crosslingual_layers",
    ),
    "crosslingual_updates": _drawn(
        "crosslingual_figures",
        _CROSS,
        "Residual updates inside Z",
        "crosslingual",
        "crosslingual_updates",
    ),
    "crosslingual_patching": _drawn(
        "crosslingual_figures",
        _CROSS,
        "Patching Z and its complement",
        "crosslingual",
        "crosslingual_patching",
    ),
    "crosslingual_ard": _drawn(
        "ard_figures",
        _CROSS,
        "Dimensions shared across languages",
        "crosslingual",
        "crosslingual_ard",
    ),
    "crosslingual_spectrum": _drawn("ard_figures", _CROSS, "ARD lengthscales"),
    "crosslingual_bridge": _drawn(
        "crosslingual_figures",
        _CROSS,
        "Linear bridge between languages",
        "crosslingual",
        "crosslingual_bridge",
        "crosslingual_bridge_spectra",
    ),
}


def entry(name: str) -> str:
    """The function that draws figure `name`, as ``"package.module:name"``."""
    return f"streamgauge.report.{FIGURES[name].module}:{name.removeprefix('crosslingual_')}"


def drawer(name: str) -> Callable:
    """The function that draws figure `name`: tables and a title in, a Matplotlib figure out."""
    return named(entry(name))
