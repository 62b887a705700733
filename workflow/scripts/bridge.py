"""The linear map between two languages inside Z, with permuted pairs and random subspaces."""

from streamgauge import basis_store, bridge, manifest, provenance
from streamgauge.jobs import job
from streamgauge.states import States

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    target, other = States(source.state_store).pooled("mean", int(snakemake.wildcards.ell))
    table, spectra = bridge.tables(
        target,
        other,
        basis_store.read(source.basis_store),
        confidence=provenance.settings(spec, "statistics")["confidence"],
        **provenance.settings(spec, "bridge"),
    )
    table.to_csv(out.table, index=False)
    spectra.to_csv(out.spectra, index=False)
    manifest.write(out.manifest, spec, [out.table, out.spectra], [source.states, source.basis])
