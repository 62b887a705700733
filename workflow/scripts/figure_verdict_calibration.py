"""Figure verdict_calibration, from the table of the simulation."""

import pandas as pd

from streamgauge import figures, manifest, provenance, verdict_figures
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    title = provenance.settings(spec, "figure")
    figure = verdict_figures.verdict_calibration(pd.read_csv(source.table), **title)
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [source.verdict_calibration])
