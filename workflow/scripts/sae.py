"""One SAE in SAELens layout: trained from a stored stream, or read from somebody else's files."""

import os

from streamgauge.artifacts.job import run
from streamgauge.base.paths import cell
from streamgauge.models import subjects
from streamgauge.sae import behavioral, e2e, formats, from_store
from streamgauge.stores import layer_stores


def train_sae(job):
    fit(job, subjects.resolve_device(job.device), ["activations"])


def train_behavioral(job):
    objective = behavioral.Behavioral(job.source.probe_store)
    device = subjects.resolve_device(job.device)
    fit(job, device, ["activations", "probes"], objective)


def train_e2e(job):
    subject = subjects.load(job.source.model, job.device, job.facts("subject")["dtype"])
    objective = e2e.EndToEnd(subject, job.source.token_store)
    fit(job, subject.device, ["activations", "subject", "tokens"], objective)


def fit(job, device, made_from, *objective):
    with job.working("manifest", *made_from) as scratch:
        facts = from_store.fit(
            job.source.store,
            os.path.dirname(job.out.cfg),
            cell(job.at),
            job.settings("sae"),
            scratch,
            device,
            *objective,
            stop_after=job.sample and job.sample["steps"],
        )
        job.write(["cfg", "weights", "history"], made_from, facts)


def import_sae(job):
    facts = formats.convert(
        job.settings("import"),
        os.path.dirname(job.out.cfg),
        layer_stores.ActivationStore(job.source.store),
        job.at.subject,
    )
    job.write(["cfg", "weights"], ["activations"], facts)


run(snakemake, globals())
