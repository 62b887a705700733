"""Figure kstar, from the table of k*."""

import pandas as pd

from streamgauge import figures, manifest, provenance, study_figures
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    table = pd.read_csv(snakemake.input.table)
    figure = study_figures.kstar(table, **provenance.settings(spec, "figure"))
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [snakemake.input.comparisons])
