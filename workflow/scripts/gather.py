"""Stores of a layer, once their parts are written: checked, completed, committed."""

from streamgauge.artifacts.commit import finish
from streamgauge.artifacts.job import run
from streamgauge.passes import gather


def harvest(job):
    finish_store(job, gather.activations)


def gradients(job):
    finish_store(job, gather.gradients)


def probes(job):
    finish_store(job, gather.probes)


def finish_store(job, check):
    made_from = [job.source.subject, job.source.tokens]
    finish(check, job.out.store, job.out.manifest, job.spec, made_from, job.source.parts)


run(snakemake, globals())
