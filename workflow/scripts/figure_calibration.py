"""Figure calibration, from the calibration table and its points."""

import pandas as pd

from streamgauge import figures, manifest, provenance, sensitivity_figures
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    table, points = pd.read_csv(snakemake.input.table), pd.read_csv(snakemake.input.points)
    title = provenance.settings(spec, "figure")
    figure = sensitivity_figures.calibration(table, points, **title)
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], [snakemake.input.calibration])
