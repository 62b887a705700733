"""Patch one SAE, and its untrained control, into the model: per-sequence losses and errors."""

import os

from streamgauge import controls, evaluate, manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import io

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    reference = stores.ActivationStore(snakemake.input.store)
    sae, _ = io.load(os.path.dirname(snakemake.input.weights))
    facts = manifest.read(snakemake.input.sae)["facts"]
    subject = subjects.load(snakemake.input.model, snakemake.resources.device)
    scratch = stores.scratch(out.table, spec)
    table, latents = evaluate.evaluate(
        subject,
        stores.read_tokens(snakemake.input.token_store),
        int(snakemake.wildcards.ell),
        controls.with_untrained(sae.to(subject.device), facts),
        reference.means(),
        reference.sink_threshold,
        scratch=scratch,
        **provenance.settings(spec, "evaluate"),
    )
    table.to_parquet(out.table, index=False)
    latents.to_parquet(out.latents, index=False)
    stores.discard(scratch)
    names = ["subject", "tokens", "activations", "sae"]
    made_from = [snakemake.input[name] for name in names]
    manifest.write(out.manifest, spec, [out.table, out.latents], made_from)
