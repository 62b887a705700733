"""Figure crosslingual_bridge, from the tables of bridges and their spectra."""

import pandas as pd

from streamgauge import crosslingual_figures, figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    title = provenance.settings(spec, "figure")
    tables = [pd.read_csv(source.table), pd.read_csv(source.spectra)]
    figure = crosslingual_figures.bridge(*tables, **title)
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [source.crosslingual])
