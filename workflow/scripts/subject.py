"""One language model as a folder of safetensors, from any source."""

from streamgauge import manifest, provenance, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    facts = subjects.prepare(provenance.settings(spec, "subject"), out.model)
    manifest.write(out.manifest, spec, files=[out.model], facts=facts)
