"""Scores of one SAE beside its controls, with intervals."""

import pandas as pd

from streamgauge import manifest, provenance, scores
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source = snakemake.params.spec, snakemake.input
    shape = manifest.read(source.sae)["facts"]
    facts = scores.scorecard(
        pd.concat([pd.read_parquet(source.table), pd.read_parquet(source.baseline_table)]),
        pd.read_parquet(source.latents),
        pd.read_parquet(source.sensitivity_table),
        d_model=shape["d_model"],
        d_sae=shape["d_sae"],
        k=shape["k"],
        **provenance.settings(spec, "statistics"),
    )
    made_from = [source.sae, source.per_sequence, source.baseline, source.sensitivity]
    manifest.write(snakemake.output[0], spec, [], made_from, facts)
