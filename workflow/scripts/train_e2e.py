"""Train one SAE on the divergence after patching."""

import os

from streamgauge import manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import cell, e2e

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    subject = subjects.load(source.model, snakemake.resources.device, dtype)
    made_from = [source.activations, source.subject, source.tokens]
    with stores.working(out.manifest, manifest.identity(spec, made_from)) as scratch:
        facts = cell.fit(
            source.store,
            os.path.dirname(out.cfg),
            provenance.cell(snakemake.wildcards),
            provenance.settings(spec, "sae"),
            scratch,
            subject.device,
            e2e.EndToEnd(subject, source.token_store),
        )
        files = [out.cfg, out.weights, out.history]
        manifest.write(out.manifest, spec, files, made_from, facts)
