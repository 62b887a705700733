"""Whether R² misleads: planted answers, the words, and the command."""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from streamgauge import audit, audit_report, config, scores, statistics
from streamgauge.errors import StreamgaugeError
from streamgauge.sae import io, topk

ROOT = Path(__file__).resolve().parents[1]
STATISTICS = {"resamples": 500, "confidence": 0.9, "seed": 3}
SUMS = ("cosine_sum", "relative_error_sum", "l0_sum", "squared_norm_sum", "dot_sum")


def rows(codec, r2, score, noise=0.0, n=12, ablation=2.0, seed=0):
    """Per-sequence rows in which every sequence has this R² and this loss score, plus noise.

    The clean loss is 3 nats and mean ablation adds `ablation`, so the patched loss follows.
    """
    rng = np.random.default_rng(seed)
    sst = rng.uniform(50, 150, n)
    table = {"sequence": np.arange(n), "codec": codec, "d_model": 8}
    for s in ("all", "no_sink"):
        table |= {f"n_tokens_{s}": 10, f"n_predicted_{s}": 9}
        table |= {f"sst_{s}": sst, f"sse_{s}": (1 - r2 + noise * rng.standard_normal(n)) * sst}
        lost = 1 - score + noise * rng.standard_normal(n)
        table |= {f"l_orig_nats_{s}": 3.0, f"l_recon_nats_{s}": 3.0 + ablation * lost}
        table |= {f"kl_nats_{s}": 0.1, **{f"{name}_{s}": 1.0 for name in SUMS}}
    return pd.DataFrame(table)


def tables(r2, score, null=(0.3, 0.3), **options):
    sae = rows("sae", r2, score, **options)
    untrained = rows("untrained", *null, **options | {"seed": 1})
    baseline = [rows(c, 0, 0, **options | {"noise": 0.0}) for c in ("zero", "mean")]
    return pd.concat([sae, untrained]), pd.concat(baseline)


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
    scored = scores.scores(both, latents, d_sae=16, k=2, **STATISTICS)
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
    for counts in statistics.resample_counts(6, 500, 3):
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


def scorecard(per_sequence, baseline):
    latents = pd.DataFrame({"sequence": [0], "codec": ["sae"], "latent": [0]})
    latents = latents.assign(n_all=1, n_no_sink=1)
    both = pd.concat([per_sequence, baseline])
    return scores.scorecard(both, latents, d_model=8, d_sae=16, k=2, **STATISTICS)


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
    io.save(sae, tmp_path / "topk-x2-k4", metadata)
    io.save(sae, tmp_path / "bare", {})
    return tmp_path


def options(*words):
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


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
    monkeypatch.setattr(audit.verify, "project", lambda: foreign)
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
