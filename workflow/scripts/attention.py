"""Attention-plan divergence of one SAE beside its controls: by sequence, and with intervals."""

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
    with stores.working(out.rows, manifest.identity(spec, made_from)) as scratch:
        rows = attention.measure(
            subject,
            stores.open_tokens(source.token_store),
            int(snakemake.wildcards.ell),
            {"sae": sae, **nulls, **controls.ablations(reference.means())},
            scratch=scratch,
            **provenance.settings(spec, "attention"),
        )
        rows.to_parquet(out.rows, index=False)
        table = attention.table(rows, **provenance.settings(spec, "statistics"))
        table.to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.rows, out.table], made_from)
