"""The ablations every SAE of a layer is compared with: per-sequence losses and errors."""

from streamgauge import controls, evaluate, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    reference = stores.ActivationStore(snakemake.input.store)
    scratch = stores.scratch(out.table, spec)
    table, _ = evaluate.evaluate(
        subjects.load(snakemake.input.model, snakemake.resources.device),
        stores.read_tokens(snakemake.input.token_store),
        int(snakemake.wildcards.ell),
        controls.ablations(reference),
        reference.means(),
        reference.sink_threshold,
        scratch=scratch,
        **provenance.settings(spec, "evaluate"),
    )
    table.to_parquet(out.table, index=False)
    stores.discard(scratch)
    made_from = [snakemake.input.subject, snakemake.input.tokens, snakemake.input.activations]
    manifest.write(out.manifest, spec, [out.table], made_from)
