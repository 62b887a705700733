"""The cross-lingual suite: what a subspace Z is, and what becomes of two languages inside it."""

from streamgauge.artifacts.job import run
from streamgauge.base.tables import read_parquet, write_csv, write_parquet
from streamgauge.crosslingual import ard_runs
from streamgauge.crosslingual import bridges as linear
from streamgauge.crosslingual import geometry as weights
from streamgauge.crosslingual import patching as patched
from streamgauge.crosslingual import separation as distances
from streamgauge.crosslingual import states as streams
from streamgauge.crosslingual import updates as written
from streamgauge.models import subjects
from streamgauge.report import patching_page
from streamgauge.stores import basis_store


def geometry(job):
    found = weights.tables(
        model(job, "cpu").model, confidence=confidence(job), **job.settings("geometry")
    )
    write_csv(found.heads, job.out.heads)
    write_csv(found.layers, job.out.layers)
    write_csv(found.similarity, job.out.similarity)
    job.write(["heads", "layers", "similarity"], ["subject"], found.facts)


def basis(job):
    found = weights.subspace_of(model(job, "cpu").model, int(job.at.ell), int(job.at.k_sub))
    facts = basis_store.write(job.out.store, job.spec, found)
    job.write(["store"], ["subject"], facts)


def states(job):
    made_from = ["subject", "prompts"]
    facts = streams.harvest(
        model(job, job.device),
        read_parquet(job.source.table),
        job.out.store,
        job.identity(*made_from),
        **job.settings("states"),
    )
    job.write(["store"], made_from, facts)


def separation(job):
    table = distances.table(
        *inside_z(job), int(job.at.ell), confidence=confidence(job), **job.settings("separation")
    )
    write_csv(table, job.out.table)
    job.write(["table"], ["states", "basis"])


def updates(job):
    table = written.table(*inside_z(job), confidence=confidence(job), **job.settings("updates"))
    write_csv(table, job.out.table)
    job.write(["table"], ["states", "basis"])


def bridge(job):
    pairs, z = inside_z(job)
    target, other = pairs.pooled("mean", int(job.at.ell))
    table, spectra = linear.tables(
        target, other, z, confidence=confidence(job), **job.settings("bridge")
    )
    write_csv(table, job.out.table)
    write_csv(spectra, job.out.spectra)
    job.write(["table", "spectra"], ["states", "basis"])


def patching(job):
    subject = model(job, job.device)
    prompts = read_parquet(job.source.prompt_table)
    made_from = ["subject", "prompts", "states", "basis"]
    with job.working("outputs", *made_from) as scratch:
        outputs = patched.run(
            subject,
            prompts,
            *inside_z(job),
            int(job.at.ell),
            job.at.source,
            stop=job.facts("prompts")["stop"],
            scratch=scratch,
            **job.settings("patching"),
        )
        write_parquet(outputs, job.out.outputs)
        rates, verdict = patched.judged(
            outputs, confidence=confidence(job), **job.settings("dissociation")
        )
        write_csv(rates, job.out.rates)
        texts = patched.problem_texts(prompts, subject.tokenizer)
        job.text("page", patching_page.page(outputs, rates, verdict, texts, job.at))
        job.write(["outputs", "rates", "page"], made_from, {"verdict": verdict})


def ard(job):
    made_from = ["states", "basis"]
    pairs, z = inside_z(job)
    with job.working("table", *made_from) as scratch:
        found = ard_runs.measure(
            pairs,
            int(job.at.ell),
            z,
            float(job.at.penalty),
            confidence=confidence(job),
            scratch=scratch,
            device=subjects.resolve_device(job.device),
            **job.settings("ard"),
        )
        ard_runs.write(job.out.store, job.spec, found)
        write_csv(found.table, job.out.table)
        job.write(["store", "table"], made_from, found.facts)


def model(job, device):
    return subjects.load(job.source.model, device, job.facts("subject")["dtype"])


def inside_z(job):
    return streams.States(job.source.state_store), basis_store.read(job.source.basis_store)


def confidence(job):
    return job.settings("statistics")["confidence"]


run(snakemake, globals())
