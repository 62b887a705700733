"""Output-Fisher probes of one layer over one split: checked, completed, committed."""

from streamgauge import gather
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    source, out = snakemake.input, snakemake.output
    gather.finish(
        gather.probes,
        out.store,
        out.manifest,
        snakemake.params.spec,
        [source.subject, source.tokens],
        source.parts,
    )
