"""Which proxy orders the SAEs of a study as their behaviour does."""

import pandas as pd

from streamgauge import leaderboard, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    grid = pd.read_csv(source.table)
    table = leaderboard.leaderboard(grid, **provenance.settings(spec, "statistics"))
    table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], [source.grid])
