"""Output-Fisher probes of one layer over one split."""

from streamgauge import gradients, manifest, probes, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = gradients.computed_in(manifest.read(source.subject)["facts"]["dtype"])
    made_from = [source.subject, source.tokens]
    scratch = stores.scratch(out.store, manifest.identity(spec, made_from))
    probes.harvest(
        subjects.load(source.model, snakemake.resources.device, dtype),
        stores.open_tokens(source.token_store),
        int(snakemake.wildcards.ell),
        scratch,
        **provenance.settings(spec, "probes"),
    )
    facts = probes.finish(scratch)
    stores.commit(scratch, out.store)
    manifest.write(out.manifest, spec, [out.store], made_from, facts)
