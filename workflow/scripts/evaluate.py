"""Passes over evaluation rows or a layer's stores, each with its nulls: a table a job."""

import os

from streamgauge.artifacts.job import run
from streamgauge.base.tables import write_csv, write_parquet
from streamgauge.models import subjects
from streamgauge.passes import attention as rows_of_attention
from streamgauge.passes import calibration as small_errors
from streamgauge.passes import controls, layer_spectra
from streamgauge.passes import critics as mutual_information
from streamgauge.passes import evaluate as patched
from streamgauge.passes import sensitivity as costs
from streamgauge.passes.gradients import computed_in
from streamgauge.sae import files
from streamgauge.stores.layer_stores import ActivationStore, GradientStore, ProbeStore, open_tokens


def spectra(job):
    found = layer_spectra.spectra(
        model(job), open_tokens(job.source.token_store), **job.settings("spectra")
    )
    layer_spectra.write(job.out.store, job.spec, found)
    layer_spectra.write_table(job.out.table, found, job.at)
    job.write(["store", "table"], ["subject", "tokens"])


def baseline(job):
    reference = ActivationStore(job.source.store)
    made_from = ["subject", "tokens", "activations"]
    with job.working("table", *made_from) as scratch:
        table, _ = patch(job, model(job), reference, controls.ablations(reference.means()), scratch)
        write_parquet(table, job.out.table)
        job.write(["table"], made_from)


def evaluate(job):
    subject = model(job)
    made_from = ["subject", "tokens", "activations", "sae"]
    with job.working("table", *made_from) as scratch:
        table, latents = patch(
            job, subject, ActivationStore(job.source.store), codecs(job, subject.device), scratch
        )
        write_parquet(table, job.out.table)
        write_parquet(latents, job.out.latents)
        job.write(["table", "latents"], made_from)


def patch(job, subject, reference, patched_in, scratch):
    settings = job.settings("evaluate")
    return patched.evaluate(
        subject,
        job.few(open_tokens(job.source.token_store), settings["batch_size"]),
        int(job.at.ell),
        patched_in,
        reference.means(),
        reference.sink_threshold,
        scratch=scratch,
        **settings,
    )


def attention(job):
    subject = model(job)
    means = ActivationStore(job.source.store).means()
    made_from = ["subject", "tokens", "activations", "sae"]
    with job.working("table", *made_from) as scratch:
        table = rows_of_attention.measure(
            subject,
            open_tokens(job.source.token_store),
            int(job.at.ell),
            {**codecs(job, subject.device), **controls.ablations(means)},
            scratch=scratch,
            **job.settings("attention"),
        )
        write_parquet(table, job.out.table)
        job.write(["table"], made_from)


def sensitivity(job):
    activations = ActivationStore(job.source.store)
    device = subjects.resolve_device(job.device)
    sae, config = files.load(os.path.dirname(job.source.cfg), device)
    costs.check_matches(config, sae, activations, job.source.cfg)
    table = costs.measure(
        activations,
        GradientStore(job.source.gradient_store),
        ProbeStore(job.source.probe_store),
        {**codecs(job, device), **controls.ablations(activations.means())},
        device=device,
        chunks=job.sample and 1,  # of a sample, the first
    )
    write_parquet(table, job.out.table)
    job.write(["table"], ["activations", "gradients", "probes", "sae"])


def calibration(job):
    dtype = computed_in(job.facts("subject")["dtype"])
    made_from = ["subject", "tokens", "activations", "probes"]
    with job.working("table", *made_from) as scratch:
        table = small_errors.measure(
            subjects.load(job.source.model, job.device, dtype),
            open_tokens(job.source.token_store),
            int(job.at.ell),
            ActivationStore(job.source.store),
            ProbeStore(job.source.probe_store),
            scratch=scratch,
            **job.settings("calibration"),
        )
        write_parquet(table, job.out.table)
        job.write(["table"], made_from)


def critics(job):
    made_from = ["subject", "tokens", "activations"]
    with job.working("table", *made_from) as scratch:
        table, facts = mutual_information.measure(
            model(job),
            open_tokens(job.source.token_store),
            ActivationStore(job.source.store),
            int(job.at.ell),
            scratch=scratch,
            **job.settings("critics"),
        )
        write_csv(table, job.out.table)
        job.write(["table"], made_from, facts)


def model(job):
    return subjects.load(job.source.model, job.device, job.facts("subject")["dtype"])


def codecs(job, device):
    sae, _ = files.load(os.path.dirname(job.source.cfg), device)
    return {"sae": sae, "untrained": controls.untrained_like(sae, job.facts("sae"))}


run(snakemake, globals())
