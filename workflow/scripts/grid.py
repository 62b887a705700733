"""One row for every SAE, control and token set of a study."""

from streamgauge import manifest, scores
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    table = scores.grid_table([manifest.read(path) for path in snakemake.input])
    table.to_csv(snakemake.output.table, index=False)
    files = [snakemake.output.table]
    manifest.write(snakemake.output.manifest, snakemake.params.spec, files, snakemake.input)
