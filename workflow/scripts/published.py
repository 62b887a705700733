"""Published scores beside those of a study, for the cells both have."""

import pandas as pd

from streamgauge import manifest, published
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    source, out = snakemake.input, snakemake.output
    subjects = [manifest.read(path) for path in source.subjects]
    grid, cells = pd.read_csv(source.table), pd.read_csv(source.cells)
    table = published.side_by_side(grid, subjects, cells)
    table.to_csv(out.table, index=False)
    made_from = [source.grid, *source.subjects]
    manifest.write(out.manifest, snakemake.params.spec, [out.table], made_from)
