"""The MI critics of a study's layers beside the dimension that spectra see."""

from collections.abc import Iterable, Mapping

import pandas as pd

from streamgauge.base.paths import cell_of


def study_table(
    layers: Iterable[tuple[Mapping, pd.DataFrame]],
    spectra: Iterable[tuple[Mapping, pd.DataFrame]],
) -> pd.DataFrame:
    """The critics of every layer of a study beside the participation ratio of the layer.

    Args:
        layers: manifest and table of each layer's critics, see `measure`.
        spectra: manifest and table of each subject's and corpus' spectra, see `layer_spectra`.

    Returns:
        ``subject, corpus, layer``, the columns of `infonce.summary`, ``d_model`` and ``pr``,
        ``pr_no_sink``, the centred participation ratios of all tokens and of those that are no
        sinks.
    """
    ratios = pd.concat([table for _, table in spectra])
    ratios = ratios[(ratios.centring == "centred") & (ratios.deflate == 0)]
    keys = ["subject", "corpus", "layer"]
    pr = ratios.pivot(index=keys, columns="token_set", values="pr")
    pr = pr.rename(columns={"all": "pr", "no_sink": "pr_no_sink"})[["pr", "pr_no_sink"]]
    parts = [
        table.assign(**cell_of(record), d_model=record["facts"]["d_model"])
        for record, table in layers
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[[*keys, *table.columns.drop(keys)]].join(pr, on=keys)
