"""Gradients of the summed loss of one layer over one split: checked, completed, committed."""

from streamgauge import gather, manifest, stores
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    made_from = [source.subject, source.tokens]
    scratch = stores.scratch(out.store, manifest.identity(spec, made_from))
    facts = gather.gradients(scratch, source.parts)
    gather.commit(scratch, out.store, out.manifest, spec, made_from, facts, source.parts)
