"""Differences across scale, budget and k of a study's SAEs."""

import pandas as pd

from streamgauge import comparisons, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    records = map(manifest.read, source.per_sequence)
    found = comparisons.tables(
        zip(records, map(pd.read_parquet, source.per_sequence_tables), strict=True),
        pd.read_csv(source.grid_table),
        comparisons.token_hashes(map(manifest.read, source.tokens)),
        provenance.settings(spec, "depths"),
        **provenance.settings(spec, "comparisons"),
        **provenance.settings(spec, "statistics"),
    )
    found.deltas.to_csv(out.deltas, index=False)
    found.budgets.to_csv(out.budgets, index=False)
    found.correlations.to_csv(out.correlations, index=False)
    found.kstar.to_csv(out.kstar, index=False)
    files = [out.deltas, out.budgets, out.correlations, out.kstar]
    made_from = [*source.per_sequence, source.grid, *source.tokens]
    manifest.write(out.manifest, spec, files, made_from, found.facts)
