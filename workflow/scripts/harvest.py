"""Activations of one layer over one split."""

from streamgauge import harvest, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    scratch = stores.scratch(out.store, spec)
    harvest.harvest(
        subjects.load(snakemake.input.model, snakemake.resources.device),
        stores.read_tokens(snakemake.input.token_store),
        int(snakemake.wildcards.ell),
        scratch,
        **provenance.settings(spec, "harvest"),
    )
    facts = harvest.finish(scratch)
    stores.commit(scratch, out.store)
    made_from = [snakemake.input.subject, snakemake.input.tokens]
    manifest.write(out.manifest, spec, [out.store], made_from, facts)
