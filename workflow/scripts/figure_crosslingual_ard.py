"""Figure crosslingual_ard, from the table of ARD fits."""

import pandas as pd

from streamgauge import ard_figures, figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    title = provenance.settings(spec, "figure")
    figure = ard_figures.ard(pd.read_csv(source.table), **title)
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [source.crosslingual])
