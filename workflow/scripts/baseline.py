"""The ablations every SAE of a layer is compared with: per-sequence losses and errors."""

from streamgauge import controls, evaluate, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    reference = stores.ActivationStore(source.store)
    made_from = [source.subject, source.tokens, source.activations]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        table, _ = evaluate.evaluate(
            subjects.load(source.model, snakemake.resources.device, dtype),
            stores.open_tokens(source.token_store),
            int(snakemake.wildcards.ell),
            controls.ablations(reference.means()),
            reference.means(),
            reference.sink_threshold,
            scratch=scratch,
            **provenance.settings(spec, "evaluate"),
        )
        table.to_parquet(out.table, index=False)
        manifest.write(out.manifest, spec, [out.table], made_from)
