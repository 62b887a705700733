"""Gradients of the summed loss of one layer over one split: the shards of one part."""

from pathlib import Path

from streamgauge import gradients, manifest, provenance, receipts, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, at = snakemake.params.spec, snakemake.input, snakemake.wildcards
    dtype = gradients.computed_in(manifest.read(source.subject)["facts"]["dtype"])
    final = Path(snakemake.output[0]).with_name("gradients-eval.zarr")
    scratch = stores.scratch(final, manifest.identity(spec, [source.subject, source.tokens]))
    part = (int(at.part), int(at.parts))
    gradients.harvest(
        subjects.load(source.model, snakemake.resources.device, dtype),
        stores.open_tokens(source.token_store),
        int(at.ell),
        scratch,
        **provenance.settings(spec, "gradients"),
        part=part,
    )
    receipts.leave(snakemake.output[0], scratch, part)
