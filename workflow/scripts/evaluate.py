"""Patch one SAE, and its untrained control, into the model: per-sequence losses and errors."""

import os

from streamgauge import controls, evaluate, manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import io

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    trained = manifest.read(source.sae)["facts"]
    reference = stores.ActivationStore(source.store)
    subject = subjects.load(source.model, snakemake.resources.device, dtype)
    sae, _ = io.load(os.path.dirname(source.cfg), subject.device)
    made_from = [source.subject, source.tokens, source.activations, source.sae]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        table, latents = evaluate.evaluate(
            subject,
            stores.open_tokens(source.token_store),
            int(snakemake.wildcards.ell),
            {"sae": sae, "untrained": controls.untrained_like(sae, trained)},
            reference.means(),
            reference.sink_threshold,
            scratch=scratch,
            **provenance.settings(spec, "evaluate"),
        )
        table.to_parquet(out.table, index=False)
        latents.to_parquet(out.latents, index=False)
        manifest.write(out.manifest, spec, [out.table, out.latents], made_from)
