"""Figures of a study, from its tables."""

from streamgauge.artifacts.figures import drawer
from streamgauge.artifacts.job import run
from streamgauge.base.tables import read_csv, stacked
from streamgauge.report import ard_figures, score_figures


def figure(job):
    draw = drawer(job.stage.removeprefix("figure_"))
    save(job, draw(*map(read_csv, job.source.tables), **job.settings("figure")))


def pr_canyon(job):
    table = stacked(read_csv, job.source.tables)
    hooked = score_figures.hooked_layers(job.records("hooked"))
    save(job, score_figures.pr_canyon(table, hooked=hooked, **job.settings("figure")))


def loss_curves(job):
    histories = score_figures.read_histories(job.source.tables, job.records("manifest"))
    save(job, score_figures.loss_curves(histories, **job.settings("figure")))


def crosslingual_spectrum(job):
    table = ard_figures.lengthscales(job.records("manifest"), job.source.stores)
    save(job, ard_figures.spectrum(table, **job.settings("figure")))


def save(job, drawn):
    score_figures.save(drawn, job.out.svg, job.out.png)
    job.write(["svg", "png"], ["manifest"])


run(snakemake, globals())
