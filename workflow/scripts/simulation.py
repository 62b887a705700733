"""How often the verdicts err, and how often they find what is there: a simulation."""

from streamgauge import manifest, provenance, simulation
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    table = simulation.calibrate(
        **provenance.settings(spec, "simulation"),
        rules=provenance.settings(spec, "verdicts"),
        confidence=provenance.settings(spec, "statistics")["confidence"],
    )
    table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table])
