"""Models pretrained from scratch: learned, one family, repeatable, resumable, one clear error."""

import json
import math
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny_models
from pipeline import prose, tree_digest
from streamgauge.artifacts import manifest
from streamgauge.artifacts.job import Names
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import corpora, pretraining, subjects

ROOT = Path(__file__).resolve().parents[2]
FAMILY = {
    "corpus": "prose",
    "vocab_size": 300,
    "context_length": 16,
    "tokens": 40_000,
    "batch_size": 32,
    "lr": 0.01,
    "warmup_fraction": 0.05,
    "seed": 0,
}
SHORT = FAMILY | {"tokens": 10_240, "batch_size": 8}  # 80 steps


def member(d_model, **changes):
    heads = d_model // 8
    block = {"source": "scratch", "d_model": d_model, "n_layers": 2, "n_heads": heads}
    return block | {"dtype": "float32"} | changes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = prose(tmp_path_factory.mktemp("corpus") / "prose.txt")
    return {"source": "text", "paths": [str(path)], "context_length": 99, "eval_fraction": 0.3}


@pytest.fixture
def pretrain(corpus, tmp_path):
    """Pretrain a member in `tmp_path`: (facts, directory)."""

    def run(name="a", block=None, family=SHORT, corpus=corpus, **options):
        unfinished = tmp_path / f"{name}.unfinished"
        unfinished.mkdir(exist_ok=True)
        target = tmp_path / name / "model"
        block = block or member(16)
        return pretraining.pretrain(block, family, corpus, target, unfinished, **options), target

    return run


@pytest.fixture(scope="module")
def family(corpus, tmp_path_factory):
    """Two members, trained in full: width -> (facts, directory)."""
    made = {}
    for width in (16, 32):
        folder = tmp_path_factory.mktemp(f"neox-{width}")
        facts = pretraining.pretrain(member(width), FAMILY, corpus, folder / "model", folder)
        made[width] = facts, folder / "model"
    return made


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 32])
def test_a_member_has_learned_and_is_a_subject_like_any_other(family, width):
    facts, directory = family[width]
    assert facts["learned_nats"] > 0.5
    assert facts["learned_nats"] == facts["unigram_entropy_nats"] - facts["eval_loss_nats"]
    assert (facts["architecture"], facts["d_model"]) == ("GPTNeoXForCausalLM", width)
    assert (facts["n_layers"], facts["vocab_size"], facts["n_ctx"]) == (2, 300, 16)
    assert facts["source"] == "scratch, 40,000 tokens of prose"
    assert facts["logit_difference"] == 0.0 and facts["suffix_reruns"] is True
    assert facts["transformer_lens"] == "yes"
    steps = 40_000 // (32 * 16)
    assert (facts["steps"], facts["train_tokens"]) == (steps, steps * 32 * 15)
    assert not any(path.is_symlink() for path in directory.iterdir())
    # a second road into the same directory finds the same model
    block = {"source": "local", "path": str(directory), "dtype": "float32"}
    again = subjects.prepare(block, directory.with_name("again"))
    assert {k: v for k, v in again.items() if k != "source"}.items() <= facts.items()


def test_width_is_all_that_tells_members_apart(family, corpus):
    (small, here), (big, there) = family[16], family[32]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert small["unigram_entropy_nats"] == big["unigram_entropy_nats"]
    differ = {"d_model", "n_parameters", "weights_sha256", "eval_loss_nats", "learned_nats"}
    assert {name for name in small if small[name] != big[name]} == differ
    rows = [
        corpora.token_rows(corpus | {"context_length": 16}, subjects.load_tokenizer(d), "eval", 8)
        for d in (here, there)
    ]
    assert np.array_equal(rows[0][0], rows[1][0])


def test_the_layout_is_that_of_pythia(family):
    model = subjects.load(family[32][1], "cpu").model
    assert model.config.use_parallel_residual
    assert model.config.intermediate_size == 4 * 32
    attention = model.gpt_neox.layers[0].attention
    angles = model.gpt_neox.rotary_emb.inv_freq
    assert attention.head_size == 8 and 2 * len(angles) == 0.25 * 8


def test_the_tokenizer_is_byte_level_with_one_special_token(family):
    tokenizer = subjects.load_tokenizer(family[16][1])
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0 and len(tokenizer) == 300
    text = "Größe ≠ 3, \tnaïve 日本!\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_held_out_loss_is_the_models_own(family, corpus):
    facts, directory = family[16]
    subject = subjects.load(directory, "cpu")
    block = corpus | {"context_length": 16}
    rows, _ = corpora.token_rows(block, subject.tokenizer, "eval", 256, at_most=True)
    ids = torch.from_numpy(rows).long()
    with torch.no_grad():
        expected = float(subject.model(ids, labels=ids).loss)
    assert facts["eval_loss_nats"] == pytest.approx(expected, rel=1e-5)


# ---- the same again ------------------------------------------------------------------------------


def test_it_is_repeatable(pretrain):
    (one, here), (two, there) = pretrain("a"), pretrain("b")
    assert one == two and tree_digest(here) == tree_digest(there)
    assert pretrain("c", family=SHORT | {"seed": 1})[0]["weights_sha256"] != one["weights_sha256"]


def test_a_killed_run_continues_with_the_same_weights(pretrain, monkeypatch, capsys):
    whole, _ = pretrain("whole")
    rate = pretraining.learning_rate

    def kill(step, *arguments):
        if step == 13:
            raise KeyboardInterrupt
        return rate(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "learning_rate", kill)
        with pytest.raises(KeyboardInterrupt):
            pretrain("killed", checkpoint_seconds=0)
    capsys.readouterr()
    resumed, target = pretrain("killed")
    assert "resuming at 1,664 of 10,240 tokens" in capsys.readouterr().err
    assert resumed == whole
    shutil.rmtree(target)
    assert pretrain("killed")[0] == whole, "from the last checkpoint, nothing left to train"


def test_a_checkpoint_of_other_work_is_not_continued(pretrain, corpus, capsys):
    pretrain("shared")
    other = SHORT | {"seed": 1}
    assert pretrain("shared", family=other)[0] == pretrain("fresh", family=other)[0]
    shorter = corpus | {"eval_fraction": 0.5}
    assert pretrain("shared", corpus=shorter)[0] == pretrain("other", corpus=shorter)[0]
    assert "resuming" not in capsys.readouterr().err


def test_a_short_corpus_is_read_again(pretrain, tmp_path):
    path = prose(tmp_path / "few.txt", paragraphs=30)
    few = {"source": "text", "paths": [str(path)], "eval_fraction": 0.3}
    assert pretrain(corpus=few)[0]["epochs"] > 2


def test_every_epoch_visits_every_row_once_in_its_own_order():
    visited = np.concatenate([pretraining._places(step, 4, 7, seed=0) for step in range(7)])
    epochs = visited.reshape(4, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len(np.unique(epochs, axis=0)) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(pretrain):
    here, there = (pretrain(device, device=device)[0] for device in ("cpu", "cuda"))
    assert there["eval_loss_nats"] == pytest.approx(here["eval_loss_nats"], abs=1e-3)


# ---- known answers -------------------------------------------------------------------------------


def test_unigram_entropy_in_closed_form():
    train = np.array([[3, 0, 0], [3, 1, 0]])  # targets: 0 three times, 1 once
    held_out = np.array([[3, 0, 2]])
    expected = -(math.log(4 / 8) + math.log(1 / 8)) / 2
    assert pretraining.unigram_entropy(train, held_out, 4) == pytest.approx(expected, rel=1e-12)


def test_a_uniform_models_loss_is_the_log_of_its_vocabulary():
    class Uniform(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(*ids.shape, 50))

    rows = np.zeros((5, 4), dtype=np.int32)
    assert pretraining.held_out_loss(Uniform(), rows, 2) == pytest.approx(math.log(50), rel=1e-6)


def test_the_learning_rate_rises_and_falls_to_a_tenth():
    rates = [pretraining.learning_rate(step, 100, 1.0, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 20) and rates[19] == 1.0 == max(rates)
    assert rates[59] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1)
    assert (np.diff(rates[:20]) > 0).all() and (np.diff(rates[19:]) < 0).all()
    assert pretraining.learning_rate(0, 2, 1.0, 0.0) == pytest.approx(0.55)


# ---- what is refused -----------------------------------------------------------------------------


def test_a_model_that_learned_nothing_is_refused(pretrain, tmp_path):
    with pytest.raises(StreamgaugeError, match=r"learned nothing.*nats.*Raise pretrain\.tokens"):
        pretrain("a", family=FAMILY | {"tokens": 512})
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_is_named(pretrain):
    with pytest.raises(StreamgaugeError, match=r"not finite at step \d+ of 80.*pretrain\.lr"):
        pretrain(family=SHORT | {"lr": 1e38})


@pytest.mark.parametrize(
    ("block", "changes", "said"),
    [
        (member(16, n_heads=3), {}, r"3 heads .* d_model of 16.*multiple of 8 times n_heads"),
        (member(16, n_heads=4), {}, "heads of 8"),
        (member(16), {"vocab_size": 256}, r"pretrain\.vocab_size: 256 tokens .* 257"),
        (member(16), {"tokens": 511}, r"pretrain\.tokens: .* 511 .* one batch of 32 sequences"),
        (member(16), {"context_length": 40_000, "tokens": 1_280_000}, "corpus is too short"),
    ],
)
def test_impossible_families_are_named(pretrain, block, changes, said):
    with pytest.raises(StreamgaugeError, match=said):
        pretrain(block=block, family=FAMILY | changes)


def test_a_corpus_of_token_ids_is_refused(pretrain, tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"tokens": [1, 2, 3]}\n')
    ids = {"source": "text", "paths": [str(path)], "column": "tokens"}
    with pytest.raises(StreamgaugeError, match=r"pretrain\.corpus: .*holds token ids"):
        pretrain(corpus=ids)


def test_a_subject_is_held_to_the_shape_that_is_expected(tmp_path):
    path = tiny_models.tiny_gpt_neox(tmp_path / "source")
    block = {"source": "local", "path": str(path)}
    expect = {"d_model": 32, "n_layers": None}
    assert subjects.prepare(block | {"expect": expect}, tmp_path / "model")["d_model"] == 32
    shutil.rmtree(tmp_path / "model")
    expect["n_layers"] = 6
    with pytest.raises(StreamgaugeError, match=r"^local .*n_layers 4, not 6.*mend expect"):
        subjects.prepare(block | {"expect": expect}, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- the parts -----------------------------------------------------------------------------------


def test_rows_at_most(corpus, family):
    tokenizer = subjects.load_tokenizer(family[16][1])
    block = corpus | {"context_length": 16}
    all_rows, all_documents = corpora.token_rows(block, tokenizer, "eval", 10**6, at_most=True)
    assert len(all_rows) == len(all_documents) < 10**6
    exact, documents = corpora.token_rows(block, tokenizer, "eval", len(all_rows))
    assert np.array_equal(exact, all_rows) and np.array_equal(documents, all_documents)
    with pytest.raises(StreamgaugeError, match=f"{len(all_rows):,} are there"):
        corpora.token_rows(block, tokenizer, "eval", len(all_rows) + 1)


def test_the_script_leaves_a_model_and_its_manifest(corpus, tmp_path):
    config = {"subject": member(16), "pretrain": SHORT, "corpus": corpus}
    spec = json.dumps({"stage": "pretrain", "config": config, "wildcards": {}, "code": {}})
    folder = tmp_path / "neox-16"
    job = SimpleNamespace(
        params=SimpleNamespace(spec=spec),
        input=Names(),
        wildcards=Names(),
        output=Names(manifest=folder / "subject.json", model=folder / "model"),
        resources=SimpleNamespace(device="cpu"),
        log=[tmp_path / "log"],
        threads=1,
    )
    runpy.run_path(str(ROOT / "workflow/scripts/subject.py"), {"snakemake": job})
    assert sorted(path.name for path in folder.iterdir()) == ["model", "subject.json"]
    assert manifest.read(folder / "subject.json")["facts"]["learned_nats"] > 0
    assert manifest.problems(folder / "subject.json") == []
