"""What a study will cost: by hand, against a count of real passes, and as documented."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny_models
from small_study import SMALL, study
from streamgauge.artifacts import manifest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import bytes_in_words
from streamgauge.cli import main
from streamgauge.models import subjects
from streamgauge.passes import gather, harvest
from streamgauge.planning import config, estimate
from streamgauge.sae import files, topk
from streamgauge.sae.step import Step
from streamgauge.stores import layer_stores

ROOT = Path(__file__).resolve().parents[2]
D, L, V, M = 16, 4, 100, 32
SHAPE = estimate.Shape(D, L, V)
STUDIES = ("fast2", "fast3", "token_budget", "scratch")


BLOCK, LOGITS = 24 * D * D, 2 * D * V
FULL, ABOVE = 4 * BLOCK + LOGITS, 2 * BLOCK + LOGITS
ENCODED = 2 * D * M + 2 * D * 3


def costs(*overlays, shape=SHAPE, tflops=30.0):
    valid = study(SMALL, *overlays)
    shapes = dict.fromkeys(valid["grid"]["subjects"], shape)
    return estimate.estimate(valid, shapes, tflops=tflops).set_index("stage")


# --- by hand ------------------------------------------------------------------------------------
def test_every_stage_by_hand():
    train, held = 24, 16
    by_hand = {
        "subject": (1, 0, 0, 0),
        "tokens": (2, train + held, 0, 8 * (train + held)),
        "spectra": (1, train, (4 * BLOCK + 2 * D * D * 4) * train, 0),
        "harvest": (2, train + held, 2 * BLOCK * (train + held), (2 * D + 4) * (train + held)),
        "gradients": (1, held, (FULL + ABOVE) * held, 2 * D * held),
        # 4 probes at all positions and 2 x 4 at sampled ones, 1 for the diagonal
        "probes": (
            *(1, held, (FULL + 13 * ABOVE) * held),
            2 * D * 5 * held + 2 * D * 4 * 2 * 2,
        ),
        "calibration": (1, 8, (FULL + 6 * ABOVE) * 8, 0),
        "train": (1, 1000, (2 * D * M + 8 * D * 3) * 1000, 4 * (2 * D * M + M + D)),
        "baseline": (1, held, (FULL + 4 * ABOVE) * held, 0),
        "evaluate": (1, held, (FULL + 4 * (ABOVE + ENCODED)) * held, 0),
        "sensitivity": (1, held, 2 * ENCODED * held, 0),
        "attention": (1, held, (4 * BLOCK + 4 * 2 * BLOCK + 2 * ENCODED) * held, 0),
    }
    by_hand["total"] = tuple(map(sum, zip(*by_hand.values(), strict=True)))
    table = costs()
    assert list(table.index) == list(by_hand)
    for stage, numbers in by_hand.items():
        row = table.loc[stage]
        assert (row.jobs, row.tokens, row.flops, row.disk_bytes) == numbers, stage
        assert row.gpu_hours == pytest.approx(row.flops / 30e12 / 3600, rel=1e-12)


def test_objectives_and_trainers():
    step = 2 * D * M + 8 * D * 3
    behavioral = costs({"grid": SMALL["grid"] | {"objectives": ["behavioral"]}})
    assert behavioral.flops["train"] == (step + 6 * D * 4) * 1000
    # the training rows are probed too, downstream only
    extra = behavioral.loc["probes"] - costs().loc["probes"]
    assert (extra.jobs, extra.tokens) == (1, 24)
    assert (extra.flops, extra.disk_bytes) == ((FULL + 4 * ABOVE) * 24, 2 * D * 4 * 24)
    e2e = costs({"grid": SMALL["grid"] | {"objectives": ["e2e"]}})
    assert e2e.flops["train"] == (step + 3 * ABOVE) * 1000
    saelens = costs({"sae": {"trainer": "saelens"}})
    assert saelens.flops["train"] == 12 * D * M * 1000


def test_storage_types():
    wide = costs(
        {"harvest": {"dtype": "float32"}, "probes": {**SMALL["probes"], "dtype": "float32"}}
    )
    assert wide.disk_bytes["harvest"] == (4 * D + 4) * 40
    assert wide.disk_bytes["probes"] == 2 * costs().disk_bytes["probes"]


def test_the_grid_is_multiplied_out():
    grid = SMALL["grid"] | {
        "layers": {"one": [0, 3]},
        "k": [3, 4],
        "tokens": [1000, 5000],
        "seeds": [0, 1, 2],
        "seeds_at": {"1000": [7]},
    }
    table = costs({"grid": grid})
    assert table.jobs["train"] == 2 * 2 * (1 + 3)
    assert table.tokens["train"] == 2 * 2 * (1000 + 3 * 5000)
    assert table.jobs["harvest"] == 4 and table.tokens["harvest"] == 2 * 40
    # above the last block are the logits only
    assert table.flops["gradients"] == (2 * FULL + (3 * BLOCK + LOGITS) + LOGITS) * 16


def test_scratch_models_are_pretrained():
    block = {"source": "scratch", "d_model": D, "n_layers": L, "n_heads": 1}
    table = costs({"subjects": {"one": block}, "pretrain": {"tokens": 500}})
    assert "subject" not in table.index
    row = table.loc["pretrain"]
    assert (row.jobs, row.tokens, row.flops) == (1, 500, 3 * FULL * 500)
    assert row.disk_bytes == 4 * (12 * D * D * L + 2 * D * V)


def test_fetched_weights_take_disk_and_links_do_not():
    block = {"source": "huggingface", "repo": "a/b"}
    assert costs({"subjects": {"one": block}}).disk_bytes["subject"] == 4 * SHAPE.parameters
    assert costs().disk_bytes["subject"] == 0


def test_a_huge_study_does_not_overflow():
    grid = SMALL["grid"] | {"tokens": [10**12]}
    table = costs({"grid": grid}, shape=estimate.Shape(12288, 96, 50000))
    assert table.flops["train"] == pytest.approx((4 + 24 / 12288) * 12288**2 * 1e12)


def test_the_rate_divides():
    assert costs(tflops=300).gpu_hours["total"] == pytest.approx(costs().gpu_hours["total"] / 10)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(StreamgaugeError, match="is no rate"):
            costs(tflops=rate)


# --- against real passes ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    path = tiny_models.tiny_gpt_neox(
        tmp_path_factory.mktemp("neox") / "model", layers=4, d_model=64
    )
    return subjects.load(path, device="cpu")


def test_passes_cost_what_is_counted(subject):
    """Products counted by torch, on 8 positions, so that attention scores hardly matter."""
    shape = estimate.Shape(64, 4, subject.vocab_size)
    ids, layer = torch.arange(16).view(2, 8), 1

    def counted(pass_):
        with FlopCounterMode(display=False) as counter:
            pass_()
        return counter.get_total_flops() / ids.numel()

    with torch.no_grad():
        h = subject.residuals(ids, [layer])[layer]
        subject.logits_from(ids, layer, h)  # the first call finds out which blocks may be skipped
        close = {"rel": 0.03}
        assert counted(lambda: subject.logits(ids)) == pytest.approx(shape.forward(), **close)
        found = counted(lambda: subject.residuals(ids, [layer]))
        assert found == pytest.approx(shape.blocks(2), **close)
        found = counted(lambda: subject.logits_from(ids, layer, h))
        assert found == pytest.approx(shape.above(layer), **close)
    leaf = h.clone().requires_grad_()
    logits = subject.logits_from(ids, layer, leaf)
    found = counted(lambda: logits.sum().backward())
    assert found == pytest.approx(shape.above(layer), **close)
    assert sum(p.numel() for p in subject.model.parameters()) == pytest.approx(
        shape.parameters, **close
    )


def test_a_step_multiplies_one_dense_matrix():
    d, m, n = 64, 512, 1024
    sae = topk.init(d, m, 4, seed=0)
    step = Step(sae, steps=1, lr=1e-3)
    with FlopCounterMode(display=False) as counter:
        step.gradients(torch.randn(n, d))
    # the encoder's rows are padded from 64 to 68
    assert counter.get_total_flops() / n == pytest.approx(2 * d * m, rel=0.07)


def test_disk_is_what_is_written(subject, tmp_path):
    tokens = np.random.default_rng(0).integers(10, tiny_models.VOCAB, (256, 32), dtype=np.int32)
    final = tmp_path / "activations.zarr"
    work = layer_stores.scratch(final, "{}")
    harvest.harvest(subject, tokens, 1, work, dtype="auto", batch_size=16, progress=False)
    gather.activations(work, progress=False)
    written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    assert written == pytest.approx((2 * 64 + 4) * tokens.size, rel=0.05)
    files.save(topk.init(64, 512, 4, seed=0), tmp_path, {})
    weights = (tmp_path / "sae_weights.safetensors").stat().st_size
    assert weights == pytest.approx(4 * (2 * 64 * 512 + 512 + 64), rel=0.01)


# --- shapes -------------------------------------------------------------------------------------
EXPECT = {"d_model": 8, "n_layers": 2, "vocab_size": 50}


def test_shapes_come_from_the_model_then_from_the_configuration(tmp_path):
    valid = study(SMALL, {"subjects": {"one": {"source": "local", "path": "x", "expect": EXPECT}}})
    assert estimate.shapes(valid, tmp_path) == {"one": estimate.Shape(8, 2, 50)}
    (tmp_path / "one").mkdir()
    facts = {"d_model": D, "n_layers": L, "vocab_size": V, "dtype": "float32"}
    manifest.write(tmp_path / "one/subject.json", "{}", [], facts=facts)
    assert estimate.shapes(valid, tmp_path) == {"one": SHAPE}


def test_a_scratch_model_has_the_vocabulary_of_its_family(tmp_path):
    block = {"source": "scratch", "d_model": 32, "n_layers": 3, "n_heads": 4}
    valid = study(SMALL, {"subjects": {"one": block}, "pretrain": {"vocab_size": 300}})
    assert estimate.shapes(valid, tmp_path) == {"one": estimate.Shape(32, 3, 300)}


def test_unknown_shapes_and_missing_layers_are_refused(tmp_path):
    with pytest.raises(StreamgaugeError, match=r"subjects\.one: .*not known.* Set expect"):
        estimate.shapes(study(SMALL), tmp_path)
    deep = copy.deepcopy(SMALL)
    deep["subjects"]["one"]["expect"] = EXPECT
    deep["grid"]["layers"]["one"] = [2]
    with pytest.raises(StreamgaugeError, match="layers 0 to 1"):
        estimate.shapes(study(deep), tmp_path)


# --- the command and the page -------------------------------------------------------------------
def of(name):
    valid = config.validate(config.load([ROOT / "config.yaml", ROOT / f"studies/{name}.yaml"]))
    return estimate.estimate(valid, estimate.shapes(valid, "nowhere"), tflops=30)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_holds_the_estimate(name):
    table = of(name).set_index("stage")
    train, total = table.loc["train"], table.loc["total"]
    page = (ROOT / "docs/studies.md").read_text()
    row = (
        f"| `{name}` | {train.jobs:.0f} | {train.tokens / 1e6:,.0f} million | {total.flops:.1e} |"
        f" {total.gpu_hours:.2g} | {bytes_in_words(total.disk_bytes)} |"
    )
    assert row in page.splitlines()


def test_the_page_holds_the_output():
    blocks = re.findall(r"^```\n(.*?)\n```", (ROOT / "docs/studies.md").read_text(), re.M | re.S)
    assert estimate.describe(of("fast2"), 30) in blocks


def test_every_study_is_on_the_page():
    page = (ROOT / "docs/studies.md").read_text()
    for path in (ROOT / "studies").glob("*.yaml"):
        assert re.search(rf"^\| `{path.stem}` \|", page, re.M), path.stem


def test_command(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["estimate", "--configfile", "studies/fast3.yaml"]
    assert main.main(words) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("study fast3,") and "at 30 TFLOP/s" in out
    assert main.main([*words, "--tflops", "0"]) == 2
    assert "is no rate" in capsys.readouterr().err
