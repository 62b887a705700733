"""Figure loss_curves, from the training histories."""

from streamgauge import figures, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    histories = figures.read_histories(snakemake.input.tables, snakemake.input.manifests)
    figure = figures.loss_curves(histories, **provenance.settings(spec, "figure"))
    figures.save(figure, out.svg, out.png)
    manifest.write(out.manifest, spec, [out.svg, out.png], snakemake.input.manifests)
