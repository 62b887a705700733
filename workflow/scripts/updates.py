"""How much of what every block writes lies in Z, for both languages."""

from streamgauge import basis_store, manifest, provenance, updates
from streamgauge.jobs import job
from streamgauge.states import States

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    table = updates.table(
        States(source.state_store),
        basis_store.read(source.basis_store),
        confidence=provenance.settings(spec, "statistics")["confidence"],
        **provenance.settings(spec, "updates"),
    )
    table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], [source.states, source.basis])
