"""Train one SAE in the metric of stored probes."""

import os

from streamgauge import manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import behavioral, cell

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    made_from = [source.activations, source.probes]
    with stores.working(out.manifest, manifest.identity(spec, made_from)) as scratch:
        facts = cell.fit(
            source.store,
            os.path.dirname(out.cfg),
            provenance.cell(snakemake.wildcards),
            provenance.settings(spec, "sae"),
            scratch,
            subjects.resolve_device(snakemake.resources.device),
            behavioral.Behavioral(source.probe_store),
        )
        files = [out.cfg, out.weights, out.history]
        manifest.write(out.manifest, spec, files, made_from, facts)
