"""Which dimensions of a layer two languages share, by ARD-MMD between their token clouds."""

from streamgauge import ard_runs, basis_store, manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.states import States

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    made_from = [source.states, source.basis]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        found = ard_runs.measure(
            States(source.state_store),
            int(snakemake.wildcards.ell),
            basis_store.read(source.basis_store),
            float(snakemake.wildcards.penalty),
            confidence=provenance.settings(spec, "statistics")["confidence"],
            scratch=scratch,
            device=subjects.resolve_device(snakemake.resources.device),
            **provenance.settings(spec, "ard"),
        )
        ard_runs.write(out.store, spec, found)
        found.table.to_csv(out.table, index=False)
        manifest.write(out.manifest, spec, [out.store, out.table], made_from, found.facts)
