"""Attention-plan divergence of every SAE of a study, with intervals."""

import pandas as pd

from streamgauge import attention, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    table = attention.study_table(
        zip(map(manifest.read, source.manifests), map(pd.read_parquet, source.tables), strict=True),
        **provenance.settings(spec, "statistics"),
    )
    table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], source.manifests)
