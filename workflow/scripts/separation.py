"""Distances between the languages inside and outside Z, beside random subspaces."""

from streamgauge import basis_store, manifest, provenance, separation
from streamgauge.jobs import job
from streamgauge.states import States

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    table = separation.table(
        States(source.state_store),
        basis_store.read(source.basis_store),
        int(snakemake.wildcards.ell),
        confidence=provenance.settings(spec, "statistics")["confidence"],
        **provenance.settings(spec, "separation"),
    )
    table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], [source.states, source.basis])
