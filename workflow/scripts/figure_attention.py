"""Figure attention, from the study's attention table."""

import pandas as pd

from streamgauge import figures, manifest, provenance, sensitivity_figures
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    table = pd.read_csv(snakemake.input.table)
    figure = sensitivity_figures.attention(table, **provenance.settings(spec, "figure"))
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [snakemake.input.attention])
