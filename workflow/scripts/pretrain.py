"""One language model of a family, pretrained from scratch, as a folder of safetensors."""

from streamgauge import manifest, provenance, stores
from streamgauge.jobs import job
from streamgauge.subjects import scratch

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    with stores.working(out.manifest, spec) as unfinished:
        facts = scratch.pretrain(
            provenance.settings(spec, "subject"),
            provenance.settings(spec, "pretrain"),
            provenance.settings(spec, "corpus"),
            out.model,
            unfinished,
            snakemake.resources.device,
        )
        manifest.write(out.manifest, spec, files=[out.model], facts=facts)
