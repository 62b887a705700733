"""Language models, as folders of safetensors: from any source, or pretrained here."""

from streamgauge.artifacts.job import run
from streamgauge.models import pretraining, subjects


def subject(job):
    facts = subjects.prepare(job.settings("subject"), job.out.model)
    job.write(["model"], facts=facts)


def pretrain(job):
    with job.working("manifest") as unfinished:
        facts = pretraining.pretrain(
            job.settings("subject"),
            job.settings("pretrain"),
            job.settings("corpus"),
            job.out.model,
            unfinished,
            job.device,
        )
        job.write(["model"], facts=facts)


run(snakemake, globals())
