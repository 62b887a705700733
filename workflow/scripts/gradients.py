"""Gradients of the summed loss of one layer over one split: the shards of one part."""

from pathlib import Path

from streamgauge import gradients, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, at = snakemake.params.spec, snakemake.input, snakemake.wildcards
    dtype = gradients.computed_in(manifest.read(source.subject)["facts"]["dtype"])
    final = Path(snakemake.output[0]).with_name("gradients-eval.zarr")
    gradients.harvest(
        subjects.load(source.model, snakemake.resources.device, dtype),
        stores.open_tokens(source.token_store),
        int(at.ell),
        stores.scratch(final, manifest.identity(spec, [source.subject, source.tokens])),
        **provenance.settings(spec, "gradients"),
        part=(int(at.part), int(at.parts)),
    )
