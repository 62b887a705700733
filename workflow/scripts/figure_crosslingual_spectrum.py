"""Figure crosslingual_spectrum, from the lengthscales of every ARD fit."""

from streamgauge import ard_figures, figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    table = ard_figures.lengthscales(source.manifests, source.stores)
    figure = ard_figures.spectrum(table, **provenance.settings(spec, "figure"))
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], source.manifests)
