"""Dimension by layer beside what the study's SAEs keep."""

import pandas as pd

from streamgauge import comparisons, manifest
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    spectra = pd.concat(map(pd.read_csv, source.spectra_tables), ignore_index=True)
    budgets = pd.read_csv(source.budgets, dtype={"depth": str})
    table = comparisons.depth_profile(spectra, budgets)
    table.to_csv(out.table, index=False)
    made_from = [*source.spectra, source.comparisons]
    manifest.write(out.manifest, spec, [out.table], made_from)
