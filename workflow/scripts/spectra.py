"""Eigen-spectra of every layer in one pass."""

from streamgauge import depth_profile, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    scratch = stores.scratch(out.store, spec)
    facts = depth_profile.depth_profile(
        subjects.load(snakemake.input.model, snakemake.resources.device),
        stores.read_tokens(snakemake.input.token_store),
        scratch,
        out.table,
        **provenance.settings(spec, "spectra"),
    )
    stores.commit(scratch, out.store)
    made_from = [snakemake.input.subject, snakemake.input.tokens]
    manifest.write(out.manifest, spec, [out.store, out.table], made_from, facts)
