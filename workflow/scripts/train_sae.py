"""Train one SAE from stored activations."""

import os

from streamgauge import manifest, provenance, subjects
from streamgauge.jobs import job
from streamgauge.sae import cell

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    facts = cell.fit(
        source.store,
        os.path.dirname(out.cfg),
        provenance.cell(snakemake.wildcards),
        provenance.settings(spec, "sae"),
        manifest.identity(spec, [source.activations]),
        subjects.resolve_device(snakemake.resources.device),
    )
    files = [out.cfg, out.weights, out.history]
    manifest.write(out.manifest, spec, files, [source.activations], facts)
