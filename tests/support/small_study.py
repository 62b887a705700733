"""Validated configurations of studies, and one small enough to count by hand."""

from pipeline import ROOT
from streamgauge.planning import config


def study(*overlays):
    """The validated configuration of files, or of mappings laid over config.yaml."""
    base = config.load([ROOT / "config.yaml"])
    for overlay in overlays:
        for block, keys in overlay.items():
            base[block] = {**base[block], **keys} if isinstance(keys, dict) else keys
    return config.validate(base)


# one model of one layer, one SAE of 2 x 16 latents; 3 and 2 rows of 8 tokens
SMALL = {
    "grid": {
        "subjects": ["one"],
        "layers": {"one": [1]},
        "expansion": [2],
        "k": [3],
        "tokens": [1000],
    },
    "subjects": {"one": {"source": "local", "path": "x"}},
    "corpora": {
        "python-docs": {
            "source": "python-docs",
            "context_length": 8,
            "train_sequences": 3,
            "eval_sequences": 2,
        }
    },
    "probes": {"count": 4, "same_positions": 2, "diagonal": 1},
    "calibration": {"scales": [0.1, 0.2, 0.3], "sequences": 1},
    "attention": {"sequences": 5},
}
