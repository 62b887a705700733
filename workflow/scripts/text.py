"""Texts as token ids of one subject: rows of a corpus, and pairs of problems."""

from streamgauge.artifacts.job import run
from streamgauge.base.tables import write_parquet
from streamgauge.crosslingual import prompts as pairs
from streamgauge.models import corpora, subjects
from streamgauge.stores import layer_stores


def tokens(job):
    rows, document = corpora.token_rows(
        job.settings("corpus"),
        subjects.load_tokenizer(job.source.model),
        job.at.split,
        job.settings("sequences"),
    )
    facts = layer_stores.store_tokens(job.out.store, job.spec, rows, document)
    job.write(["store"], ["subject"], facts)


def prompts(job):
    table, facts = pairs.prepare(
        job.source.file,
        job.settings("prompts"),
        subjects.load_tokenizer(job.source.model),
        job.facts("subject")["n_ctx"],
    )
    write_parquet(table, job.out.table)
    job.write(["table"], ["subject"], facts)


run(snakemake, globals())
