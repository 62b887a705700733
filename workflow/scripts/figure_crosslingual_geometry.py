"""Figure crosslingual_geometry, from the table of layers."""

import pandas as pd

from streamgauge import crosslingual_figures, figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    title = provenance.settings(spec, "figure")
    figure = crosslingual_figures.geometry(pd.read_csv(source.table), **title)
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [source.crosslingual])
