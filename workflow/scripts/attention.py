"""Attention-plan divergence of one SAE beside its controls, by sequence."""

import os

from streamgauge import attention, controls, manifest, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import io

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    trained = manifest.read(source.sae)["facts"]
    reference = stores.ActivationStore(source.store)
    subject = subjects.load(source.model, snakemake.resources.device, dtype)
    sae, _ = io.load(os.path.dirname(source.cfg), subject.device)
    nulls = {"untrained": controls.untrained_like(sae, trained)}
    made_from = [source.subject, source.tokens, source.activations, source.sae]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        table = attention.measure(
            subject,
            stores.open_tokens(source.token_store),
            int(snakemake.wildcards.ell),
            {"sae": sae, **nulls, **controls.ablations(reference.means())},
            scratch=scratch,
            **provenance.settings(spec, "attention"),
        )
        table.to_parquet(out.table, index=False)
        manifest.write(out.manifest, spec, [out.table], made_from)
