"""Figure pr_canyon, from the spectra tables."""

import pandas as pd

from streamgauge import figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    table = pd.concat(map(pd.read_csv, snakemake.input.tables), ignore_index=True)
    hooked = figures.hooked_layers(snakemake.input.hooked)
    figure = figures.pr_canyon(table, hooked=hooked, **provenance.settings(spec, "figure"))
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], snakemake.input.manifests)
