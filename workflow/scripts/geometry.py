"""Kernel ranks, attention subspaces and FFN alignment of every layer, from the weights."""

from streamgauge import geometry, manifest, provenance, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    found = geometry.tables(
        subjects.load(source.model, "cpu", dtype).model,
        confidence=provenance.settings(spec, "statistics")["confidence"],
        **provenance.settings(spec, "geometry"),
    )
    found.heads.to_csv(out.heads, index=False)
    found.layers.to_csv(out.layers, index=False)
    found.similarity.to_csv(out.similarity, index=False)
    files = [out.heads, out.layers, out.similarity]
    manifest.write(out.manifest, spec, files, [source.subject], found.facts)
