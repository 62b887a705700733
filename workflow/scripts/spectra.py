"""Eigen-spectra of every layer in one pass."""

from streamgauge import depth_profile, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    found = depth_profile.spectra(
        subjects.load(source.model, snakemake.resources.device, dtype),
        stores.open_tokens(source.token_store),
        **provenance.settings(spec, "spectra"),
    )
    depth_profile.write(out.store, spec, found)
    depth_profile.write_table(out.table, found, snakemake.wildcards)
    files = [out.store, out.table]
    manifest.write(out.manifest, spec, files, [source.subject, source.tokens])
