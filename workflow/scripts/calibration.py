"""What small synthetic errors cost, measured and predicted from the probes, at one layer."""

from streamgauge import calibration, gradients, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = gradients.computed_in(manifest.read(source.subject)["facts"]["dtype"])
    made_from = [source.subject, source.tokens, source.activations, source.probes]
    with stores.working(out.table, manifest.identity(spec, made_from)) as scratch:
        table = calibration.measure(
            subjects.load(source.model, snakemake.resources.device, dtype),
            stores.open_tokens(source.token_store),
            int(snakemake.wildcards.ell),
            stores.ActivationStore(source.store),
            stores.ProbeStore(source.probe_store),
            scratch=scratch,
            **provenance.settings(spec, "calibration"),
        )
        table.to_parquet(out.table, index=False)
        manifest.write(out.manifest, spec, [out.table], made_from)
