"""What the residual stream of a layer and the logits share, by critics of bounded width."""

from streamgauge import critic_runs, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    made_from = [source.subject, source.tokens, source.activations]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        table, facts = critic_runs.measure(
            subjects.load(source.model, snakemake.resources.device, dtype),
            stores.open_tokens(source.token_store),
            stores.ActivationStore(source.store),
            int(snakemake.wildcards.ell),
            scratch=scratch,
            **provenance.settings(spec, "critics"),
        )
        table.to_csv(out.table, index=False)
        manifest.write(out.manifest, spec, [out.table], made_from, facts)
