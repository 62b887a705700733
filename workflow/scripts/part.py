"""One part of a store of a layer: its shards, and a receipt that says they are there."""

from streamgauge.artifacts.job import part_of, run
from streamgauge.models import subjects
from streamgauge.passes import gradients as backward
from streamgauge.passes import harvest as forward
from streamgauge.passes import probes as fisher
from streamgauge.stores import layer_stores


def harvest(job):
    dtype = job.facts("subject")["dtype"]
    write(job, forward.harvest, dtype, job.settings("harvest"))


def gradients(job):
    dtype = backward.computed_in(job.facts("subject")["dtype"])
    write(job, backward.harvest, dtype, job.settings("gradients"))


def probes(job):
    dtype = backward.computed_in(job.facts("subject")["dtype"])
    write(job, fisher.harvest, dtype, job.settings("probes"))


def write(job, harvest_part, dtype, settings):
    with part_of(job, "subject", "tokens") as (scratch, part):
        harvest_part(
            subjects.load(job.source.model, job.device, dtype),
            layer_stores.open_tokens(job.source.token_store),
            int(job.at.ell),
            scratch,
            **settings,
            part=part,
        )


run(snakemake, globals())
