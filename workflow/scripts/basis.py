"""The attention subspace Z of one layer, as a store."""

from streamgauge import basis_store, geometry, manifest, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    found = geometry.subspace_of(
        subjects.load(source.model, "cpu", dtype).model,
        int(snakemake.wildcards.ell),
        int(snakemake.wildcards.k_sub),
    )
    facts = basis_store.write(out.store, spec, found)
    manifest.write(out.manifest, spec, [out.store], [source.subject], facts)
