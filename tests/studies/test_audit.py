"""Whether R² misleads: planted answers, the words, and the command."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from audit_data import STATISTICS, options, scorecard, tables
from streamgauge.artifacts.stages import STAGES
from streamgauge.base.errors import StreamgaugeError
from streamgauge.cli import audit
from streamgauge.numerics import inference
from streamgauge.planning import cells, config
from streamgauge.sae import files, topk
from streamgauge.studies import audit_report, score_card

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("r2", "score", "direction"),
    [(0.9, 0.6, "overstates"), (0.6, 0.9, "understates"), (0.8, 0.8, "no difference resolved")],
)
def test_the_planted_difference_is_found(r2, score, direction):
    noise = 0.02 if r2 == score else 0.0
    found = audit_report.judge(*tables(r2, score, noise=noise), **STATISTICS)
    for s in ("all", "no_sink"):
        misleads = found["token_sets"][s]["sae"]["misleads"]
        assert misleads["value"] == pytest.approx(r2 - score, abs=0.03 if noise else 1e-12)
        assert misleads["direction"] == direction
        if not noise:
            assert misleads["share"] == 1
            beyond = found["token_sets"][s]["sae_minus_untrained"]["misleads"]
            assert beyond["value"] == pytest.approx(r2 - score, abs=1e-12)
            assert found["token_sets"][s]["sae"]["ablation_cost_nats"]["value"] == pytest.approx(2)


def test_mean_ablation_and_perfection_score_0_and_1_on_both():
    found = audit_report.judge(*tables(1, 1, null=(0, 0)), **STATISTICS)["token_sets"]["all"]
    for codec, value in (("sae", 1), ("untrained", 0)):
        for measure in ("r2", "ce_loss_score_mean"):
            assert found[codec][measure]["value"] == pytest.approx(value, abs=1e-12)


def test_the_numbers_are_those_of_the_scorecard():
    per_sequence, baseline = tables(0.9, 0.7, noise=0.1)
    latents = pd.DataFrame({"sequence": [0], "codec": ["sae"], "latent": [0]})
    latents = latents.assign(n_all=1, n_no_sink=1)
    judged = audit_report.judge(per_sequence, baseline, **STATISTICS)["token_sets"]
    both = pd.concat([per_sequence, baseline])
    scored = score_card.scores(both, latents, d_sae=16, k=2, **STATISTICS)
    for s in ("all", "no_sink"):
        for codec in ("sae", "untrained"):
            for measure in ("r2", "ce_loss_score_mean"):
                for end in ("value", "low", "high"):
                    expected = scored[codec][s][measure][end]
                    assert judged[s][codec][measure][end] == pytest.approx(expected, rel=1e-12)


def test_the_share_is_that_of_the_resamples():
    per_sequence, baseline = tables(0.8, 0.8, noise=0.1, n=6)
    found = audit_report.judge(per_sequence, baseline, **STATISTICS)["token_sets"]["all"]["sae"]
    sae = per_sequence[per_sequence.codec == "sae"]
    differences = []
    for counts in inference.resample_counts(6, 500, 3):
        r2 = 1 - (counts @ sae.sse_all) / (counts @ sae.sst_all)
        differences.append(r2 - (1 - counts @ (sae.l_recon_nats_all - 3) / (2 * 6)))
    same = np.sign(differences) == np.sign(found["misleads"]["value"])
    assert found["misleads"]["share"] == same.mean() and 0 < same.mean() < 1


def test_nothing_is_resolved_where_mean_ablation_costs_nothing():
    per_sequence, baseline = tables(0.9, 0.2)
    free = baseline.assign(l_recon_nats_all=3 + np.random.default_rng(0).standard_normal(24))
    found = audit_report.judge(per_sequence, free, **STATISTICS)["token_sets"]
    for codec in ("sae", "untrained", "sae_minus_untrained"):
        assert found["all"][codec]["misleads"]["direction"] == "no difference resolved"
    assert found["no_sink"]["sae"]["misleads"]["direction"] == "overstates"


def test_one_sequence_says_nothing_about_its_variation():
    found = audit_report.judge(*tables(0.9, 0.5, n=1), **STATISTICS)
    misleads = found["token_sets"]["all"]["sae"]["misleads"]
    assert misleads["value"] == pytest.approx(0.4)
    assert (misleads["low"], misleads["share"]) == (None, None)
    assert misleads["direction"] == "no difference resolved"
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("missing", ["sae", "untrained", "mean"])
def test_a_judgement_needs_its_null(missing):
    per_sequence, baseline = tables(0.9, 0.5)
    with pytest.raises(StreamgaugeError, match="no rows of codec"):
        audit_report.judge(
            per_sequence[per_sequence.codec != missing], baseline[baseline.codec != missing]
        )
    with pytest.raises(StreamgaugeError, match="no rows of codec 'mean' on the sequences"):
        audit_report.judge(per_sequence, baseline[baseline.sequence > 0])


def test_the_page_says_it_in_words_with_the_null_beside():
    made = tables(0.9, 0.6)
    judged = audit_report.judge(*made, **STATISTICS)
    facts = {
        **{"d_model": 8, "d_sae": 16, "k": None, "control_k": 3, "source": "/an/sae"},
        **{"format": "saelens", "activation": "jumprelu"},
        "trained_on": {"model": "gpt2", "corpus": None},
    }
    page = audit_report.page("mine", facts, scorecard(*made), judged)
    first = page.splitlines()[4]
    assert first.startswith("R² overstates how much of the model's predictions this SAE keeps")
    assert "R² is 0.9, the loss score 0.6" in first and "0.3 (90% interval 0.3 to 0.3)" in first
    assert "untrained SAE of this shape the difference is 0 (0 to 0)" in first
    assert "| | SAE | untrained | mean ablation | zero ablation |" in page
    assert page.count("| R² | 0.9 (0.9 to 0.9) | 0.3 (0.3 to 0.3) | 0 (0 to 0) |") == 2
    assert "says of its training: model `gpt2`\n" in page and "k = 3" in page
    assert "## Without sinks" in page and "None" not in page and "nan" not in page
    own = {"d_model": 8, "d_sae": 16, "k": 2}  # an SAE the pipeline trained itself
    assert "k = 2" in audit_report.page("ours", own, scorecard(*made), judged)


@pytest.fixture
def foreign(tmp_path):
    """An SAE that names model, corpus and layer, and one that names nothing."""
    sae = topk.init(16, 32, 4, seed=0, b_dec=torch.zeros(16))
    metadata = {
        **{"model_name": "smollm2-135m", "hook_name": "blocks.10.hook_resid_post"},
        **{"dataset_path": "monology/pile-uncopyrighted"},
    }
    files.save(sae, tmp_path / "topk-x2-k4", metadata)
    files.save(sae, tmp_path / "bare", {})
    return tmp_path


def test_what_the_sae_names_is_the_default(foreign):
    base = config.load([ROOT / "config.yaml"])
    overlay, page = audit.command(options(foreign / "topk-x2-k4"), base)
    ((name, entry),) = overlay["imports"].items()
    assert not name.startswith("topk-x")
    assert (entry["subject"], entry["layer"]) == ("smollm2-135m", 10)
    assert overlay["subjects"]["smollm2-135m"] == base["subjects"]["smollm2-135m"]
    corpus = overlay["corpora"][entry["corpus"]]
    assert corpus["repo"] == "monology/pile-uncopyrighted" and corpus["context_length"] == 128
    assert page == f"results/smollm2-135m/{entry['corpus']}/L10/sae/{name}/audit.md"


def test_the_overlay_is_a_legal_configuration_and_its_names_say_what_they_stand_for(foreign):
    notes, model = foreign / "my notes.txt", foreign / "model"
    notes.write_text("text")
    model.mkdir()
    base = config.load([ROOT / "config.yaml"])
    given = ("--layer", 3, "--eval-sequences", 9)
    seen = set()
    for words in (
        ("--model", "EleutherAI/pythia-70m", "--corpus", "python-docs"),
        ("--model", "EleutherAI/pythia-70m", "--corpus", "hf:NeelNanda/pile-10k"),
        ("--model", model, "--corpus", notes),
        ("--model", model, "--corpus", notes, "--context-length", 64),
    ):
        overlay, page = audit.command(options(foreign / "bare", *words, *given), base)
        (foreign / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        valid = config.validate(config.load([ROOT / "config.yaml", foreign / "overlay.yaml"]))
        (entry,) = valid["imports"].values()
        assert valid["corpora"][entry["corpus"]]["eval_sequences"] == 9
        assert entry["format"] == "saelens" and entry["path"] == str(foreign / "bare")
        assert (overlay, page) == audit.command(options(foreign / "bare", *words, *given), base)
        seen.add(page)
    assert len(seen) == 4
    named = audit.command(options(foreign / "bare", *words, *given, "--name", "mine"), base)
    assert named[1].endswith("/L03/sae/mine/audit.md")


def test_an_audit_is_a_study_that_asks_for_nothing_of_another(foreign):
    base = config.load([ROOT / "config.yaml"])
    given = options(foreign / "topk-x2-k4", "--corpus", "python-docs")
    overlay, _ = audit.command(given, base)
    assert overlay["study"] == f"audit-{next(iter(overlay['imports']))}"
    demo, own = (
        {STAGES[stage].path.format(**place) for stage, place in cells.artifacts(valid)}
        for valid in map(config.validate, (base, config.merge(base, overlay)))
    )
    assert demo & own == {"results/smollm2-135m/subject.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "does not say which model .* Give --model"),
        (("--model", "gpt2"), "does not say which corpus"),
        (("--model", "gpt2", "--corpus", "python-docs"), "does not say which layer"),
        (("--model", "gpt2", "--corpus", "nowhere.txt"), "nowhere.txt: no such file"),
        (("--model", "./nowhere"), "no such model"),
        (("--model", "nowhere.gguf"), "no such model"),
    ],
)
def test_what_nobody_names_has_to_be_given(foreign, words, message):
    base = config.load([ROOT / "config.yaml"])
    with pytest.raises(StreamgaugeError, match=message):
        audit.command(options(foreign / "bare", *words), base)
    with pytest.raises(StreamgaugeError, match="Use layer 10"):
        audit.command(options(foreign / "topk-x2-k4", "--layer", 9), base)


def test_the_command_runs_the_workflow_and_prints_the_page(foreign, monkeypatch, capsys):
    (foreign / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    for folder in ("workflow/scripts", "src/streamgauge"):  # what a checkout is known by
        (foreign / folder).mkdir(parents=True)
    monkeypatch.chdir(foreign)
    calls = []

    def workflow(command, cwd, **_):
        calls.append(command)
        assert cwd == foreign and Path(command[-1]).is_file()
        page = foreign / command[3]
        page.parent.mkdir(parents=True)
        page.write_text("# the page\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(audit.subprocess, "run", workflow)
    given = options(foreign / "topk-x2-k4", "--corpus", "python-docs", "--out", foreign / "a.md")
    assert audit.run(given) == 0
    assert capsys.readouterr().out == (foreign / "a.md").read_text() == "# the page\n"
    assert calls[0][1:3] == ["-m", "snakemake"] and calls[0][4:6] == ["--cores", "all"]
    overlay = Path(calls[0][-1])
    assert overlay.parent == foreign / "results/audits"
    assert config.validate(config.load([foreign / "config.yaml", overlay]))["imports"]

    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(audit.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(StreamgaugeError, match="the audit stopped; the lines above say why"):
        audit.run(given)
