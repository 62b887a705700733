"""Answers with Z, its complement and the controls patched: outputs, rates, verdict and page."""

from pathlib import Path

import pandas as pd

from streamgauge import basis_store, manifest, patching, patching_page, provenance, stores, subjects
from streamgauge.jobs import job
from streamgauge.states import States

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    subject = subjects.load(source.model, snakemake.resources.device, dtype)
    prompts = pd.read_parquet(source.prompt_table)
    made_from = [source.subject, source.prompts, source.states, source.basis]
    with stores.working(out.outputs, manifest.identity(spec, made_from)) as scratch:
        outputs = patching.run(
            subject,
            prompts,
            States(source.state_store),
            basis_store.read(source.basis_store),
            int(snakemake.wildcards.ell),
            snakemake.wildcards.source,
            stop=manifest.read(source.prompts)["facts"]["stop"],
            scratch=scratch,
            **provenance.settings(spec, "patching"),
        )
        outputs.to_parquet(out.outputs, index=False)
        confidence = provenance.settings(spec, "statistics")["confidence"]
        judging = provenance.settings(spec, "dissociation")
        rates, verdict = patching.judged(outputs, confidence=confidence, **judging)
        rates.to_csv(out.rates, index=False)
        texts = patching.problem_texts(prompts, subject.tokenizer)
        page = patching_page.page(outputs, rates, verdict, texts, snakemake.wildcards)
        Path(out.page).write_text(page, encoding="utf-8")
        files = [out.outputs, out.rates, out.page]
        manifest.write(out.manifest, spec, files, made_from, {"verdict": verdict})
