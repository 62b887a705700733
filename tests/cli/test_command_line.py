"""`streamgauge inspect` and `verify` on real artifacts of a small made-up study."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from streamgauge.artifacts import contents, keys, manifest, verify
from streamgauge.cli import main
from streamgauge.planning import config, replacing
from streamgauge.stores import layer_stores
from streamgauge.studies import score_card

ROOT = Path(__file__).resolve().parents[2]
CELL = {"subject": "smollm2-135m", "corpus": "python-docs"}
LAYER = {**CELL, "ell": "10"}
SAE = {**LAYER, "sae": "topk-x8-k8-t200000-mse-seed0"}


def write_manifest(project, path, stage, wildcards, files, inputs=(), facts=None):
    valid = config.validate(config.load([project / "config.yaml"]))
    spec = keys.spec(project, valid, stage, wildcards)
    manifest.write(path, spec, files, inputs, facts)


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout with one artifact of several kinds, as the pipeline would leave them."""
    project = tmp_path_factory.mktemp("checkout")
    for name in ("src", "workflow"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "config.yaml", project)
    subject = project / "results/smollm2-135m"
    (subject / "model").mkdir(parents=True)
    (subject / "model/config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    save_file({"w": torch.ones(4, 3)}, subject / "model/model.safetensors")
    write_manifest(
        project,
        subject / "subject.json",
        "subject",
        {"subject": "smollm2-135m"},
        [subject / "model"],
        facts={"d_model": 64, "n_layers": 30},
    )

    corpus = subject / "python-docs"
    corpus.mkdir()
    tokens = np.arange(320, dtype=np.int32).reshape(20, 16)
    with_tokens = corpus / "tokens-train.zarr"
    write_store(
        with_tokens,
        [
            layer_stores.Array(
                "tokens", ("sequence", "position"), (20, 16), "int32", "token id", "ids"
            ),
        ],
        {"tokens": tokens},
        {"sequence": range(20), "position": range(16)},
    )
    tokens_manifest = corpus / "tokens-train.json"
    wildcards = {**CELL, "split": "train"}
    write_manifest(
        project, tokens_manifest, "tokens", wildcards, [with_tokens], [subject / "subject.json"]
    )

    layer = corpus / "L10"
    layer.mkdir()
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 3.0, (40, 16, 8)).astype(np.float32)
    store = layer / "activations-train.zarr"
    dims = ("sequence", "position", "d_model")
    write_store(
        store,
        [
            layer_stores.Array(
                "activations", dims, values.shape, "float32", "1", "residual", chunk=4, shard=8
            ),
            layer_stores.Array(
                "norm", dims[:2], (40, 16), "float32", "1", "norm", chunk=4, shard=8
            ),
        ],
        {"activations": values, "norm": np.linalg.norm(values, axis=2)},
        {"sequence": range(40), "position": range(16)},
    )
    write_manifest(
        project,
        layer / "activations-train.json",
        "harvest",
        {**LAYER, "split": "train"},
        [store],
        [tokens_manifest],
        {"n_sequences": 40, "dtype": "float32"},
    )

    sae = layer / "sae/topk-x8-k8-t200000-mse-seed0"
    sae.mkdir(parents=True)
    (sae / "cfg.json").write_text('{"architecture": "topk", "k": 8, "d_in": 8, "metadata": {}}')
    save_file({"W_enc": torch.eye(8), "b_dec": torch.zeros(8)}, sae / "sae_weights.safetensors")
    steps = np.arange(1, 30)
    history = pd.DataFrame(
        {"step": steps, "tokens": steps * 1024, "fvu": 1 / steps, "loss": 9 / steps}
    )
    history.to_csv(sae / "training.csv", index=False)
    files = [sae / name for name in ("cfg.json", "sae_weights.safetensors", "training.csv")]
    write_manifest(
        project, sae / "sae.json", "train_sae", SAE, files, [layer / "activations-train.json"]
    )
    table = pd.DataFrame({"sequence": range(6), "codec": "sae", "l_recon_nats_all": 3.5})
    table.to_parquet(sae / "per_sequence.parquet", index=False)
    write_manifest(
        project,
        sae / "per_sequence.json",
        "evaluate",
        SAE,
        [sae / "per_sequence.parquet"],
        [sae / "sae.json"],
    )
    found = {
        codec: {
            token_set: {name: estimate(0.5) for name in score_card.METRICS}
            for token_set in ("all", "no_sink")
        }
        for codec in ("sae", "untrained", "mean")
    }
    facts = {"d_model": 8, "d_sae": 8, "k": 8, "scores": found}
    write_manifest(
        project, sae / "scores.json", "score", SAE, [], [sae / "per_sequence.json"], facts
    )
    study = project / "results/studies/demo"
    study.mkdir(parents=True)
    grid = score_card.grid_table([manifest.read(sae / "scores.json")])
    grid.to_csv(study / "grid.csv", index=False)
    study_manifest = study / "grid.json"
    write_manifest(
        project,
        study_manifest,
        "grid",
        {"study": "demo"},
        [study / "grid.csv"],
        [sae / "scores.json"],
    )
    valid = config.validate(config.load([project / "config.yaml"]))
    replacing.leave_record(valid, ["results/studies/demo/grid.json"], project)
    return project


def write_store(final, arrays, values, coordinates):
    work = layer_stores.scratch(final, "spec")
    layer_stores.create(work, arrays, coordinates)
    store = layer_stores.Store(work, writable=True)
    for name, value in values.items():
        store.write(name, 0, value)
    layer_stores.commit(work, final)


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy to damage, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    keys.code.cache_clear()
    return folder


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


STORE = "results/smollm2-135m/python-docs/L10/activations-train"
SAE_FOLDER = "results/smollm2-135m/python-docs/L10/sae/topk-x8-k8-t200000-mse-seed0"
SCORE_CARD = "src/streamgauge/studies/score_card.py"
N_ARTIFACTS = 7


# --- verify -------------------------------------------------------------------------------------
def test_all_is_well(project, run):
    status, out, err = run("verify")
    progress = [line for line in err.splitlines() if line.startswith("[")]
    assert status == 0 and err.splitlines() == progress
    assert out.startswith(f"{N_ARTIFACTS} artifacts,") and out.endswith("all is well\n")
    assert len(out.splitlines()) == 1


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGES = {
    "flipped byte": (
        lambda: flip(Path(f"{STORE}.zarr/activations/c/2/0/0")),
        f"{STORE}.json",
        "activations-train.zarr/activations/c/2/0/0 has changed",
    ),
    "missing shard": (
        lambda: Path(f"{STORE}.zarr/activations/c/4/0/0").unlink(),
        f"{STORE}.json",
        "activations-train.zarr/activations/c/4/0/0 is missing",
    ),
    "stray file": (
        lambda: Path(f"{STORE}.zarr/activations/c/9").write_text("x"),
        f"{STORE}.json",
        "does not belong",
    ),
    "hand-edited table": (
        lambda: edit(Path("results/studies/demo/grid.csv"), "0.5", "0.9"),
        "results/studies/demo/grid.json",
        "grid.csv has changed",
    ),
    "hand-edited score": (
        lambda: edit(Path(f"{SAE_FOLDER}/scores.json"), "0.5", "0.9"),
        f"{SAE_FOLDER}/scores.json",
        "edited by hand",
    ),
    "flipped weight": (
        lambda: flip(Path("results/smollm2-135m/model/model.safetensors")),
        "results/smollm2-135m/subject.json",
        "model/model.safetensors has changed",
    ),
    "config": (
        lambda: edit(Path("config.yaml"), "lr: 0.002 ", "lr: 1e-3 "),
        f"{SAE_FOLDER}/sae.json",
        "sae.lr was 0.002 and is 0.001 in the config",
    ),
    "code": (
        lambda: edit(Path(SCORE_CARD), "LATENTS_AT_ONCE = 64", "LATENTS_AT_ONCE = 32"),
        f"{SAE_FOLDER}/scores.json",
        "its code has changed: streamgauge.studies.score_card",
    ),
    "hand-edited spec": (
        lambda: edit(Path(f"{STORE}.json"), '"dtype": "auto"', '"dtype": "float16"'),
        f"{STORE}.json",
        "edited by hand or damaged",
    ),
    "truncated manifest": (
        lambda: Path(f"{STORE}.json").write_text(Path(f"{STORE}.json").read_text()[:100]),
        f"{STORE}.json",
        "not JSON",
    ),
    "emptied manifest": (
        lambda: Path(f"{STORE}.json").write_text("{}"),
        f"{STORE}.json",
        "not a manifest",
    ),
    "manifest of another shape": (
        lambda: Path(f"{STORE}.json").write_text(
            json.dumps(dict.fromkeys(["spec", "files", "inputs", "facts", "digest"], 3))
        ),
        f"{STORE}.json",
        "not a manifest",
    ),
    "manifest that is not text": (
        lambda: Path(f"{STORE}.json").write_bytes(b"\xff\xfe\x00"),
        f"{STORE}.json",
        "",
    ),
    "no manifest": (
        lambda: Path(f"{STORE}.json").unlink(),
        f"{STORE}.json",
        "has no manifest: unfinished, or it was deleted",
    ),
    "input gone": (
        lambda: Path("results/smollm2-135m/subject.json").unlink(),
        "results/smollm2-135m/subject.json",
        "has no manifest",
    ),
    "hand-edited digest": (
        lambda: edit(Path("results/smollm2-135m/subject.json"), '"digest": "', '"digest": "f'),
        "results/smollm2-135m/subject.json",
        "edited by hand",
    ),
    "a record's settings": (
        lambda: edit(Path("results/studies/demo/study.json"), '"study": "demo"', '"study": "omed"'),
        "results/studies/demo/study.json",
        "edited by hand",
    ),
    "no record": (
        lambda: Path("results/studies/demo/study.json").unlink(),
        "results/studies/demo/study.json",
        "is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_named_and_has_a_remedy(project, run, name):
    damage, artifact, says = DAMAGES[name]
    damage()
    status, out, _ = run("verify")
    assert status == 1
    lines = [line for line in out.splitlines() if line.startswith(artifact + ": ")]
    assert any(says in line for line in lines), out
    made = "" if artifact.endswith("study.json") else f" {artifact}"
    assert all(f"rm -f {artifact} && snakemake{made}" in line for line in lines)
    # nothing healthy is accused: one problem, of one artifact
    assert out.splitlines()[-1].endswith(": 1 problem") or name in ("config", "code")


def test_what_was_made_from_another_input_is_made_again_as_a_set(project, run):
    """The tokens were made anew: the activations are not of these, nor is what came of them."""
    tokens, layer = (
        Path("results/smollm2-135m/python-docs/tokens-train.json"),
        Path(f"{STORE}.json"),
    )
    before = manifest.read(tokens)
    files = [tokens.with_suffix(".zarr")]
    manifest.write(
        tokens, json.dumps(before["spec"]), files, [tokens.parents[1] / "subject.json"], {"n": 1}
    )
    status, out, _ = run("verify")
    assert status == 1
    assert f"{layer}: {tokens} has been made anew since" in out
    assert f"{SAE_FOLDER}/sae.json: was made from {layer}, which has to be made again" in out
    (remedy,) = [line for line in out.splitlines() if line.startswith("Remedy for")]
    again = [f"{SAE_FOLDER}/{name}.json" for name in ("per_sequence", "sae", "scores")]
    again = [str(layer), *again, "results/studies/demo/grid.json"]
    command = f"rm -f {' '.join(again)} && snakemake {' '.join(again)}"
    assert remedy.endswith(command), (remedy, command)


def test_comments_and_touches_are_no_mismatch(project, run):
    edit(Path(SCORE_CARD), "import numpy", "# a comment\nimport numpy")
    Path(f"{STORE}.zarr/activations/c/2/0/0").touch()
    Path(f"{STORE}.zarr/.snakemake_timestamp").touch()
    edit(Path("config.yaml"), "k: [8, 32, 128]", "k: [8]")
    assert run("verify")[0] == 0


def test_a_study_of_other_subjects_is_reported_and_passes(project, run, tmp_path):
    """An artifact another config describes cannot be compared; its files still are."""
    edit(Path("config.yaml"), "study: demo", "study: other")
    status, out, _ = run("verify")
    assert status == 0
    line = "results/studies/demo/grid.json: not described by this config"
    assert line in out and "1 not described by this config: all is well" in out
    edit(Path("results/studies/demo/grid.csv"), "0.5", "0.6")
    assert run("verify")[0] == 1


def test_an_overlay_is_compared_and_named_in_the_remedy(project, run):
    Path("mine.yaml").write_text("statistics: {resamples: 200}\n")
    # Snakemake hands config.yaml over too, after the overlay
    status, out, _ = run("verify", "--configfile", "mine.yaml", "config.yaml")
    assert status == 1
    assert "statistics.resamples was 5000 and is 200" in out
    assert f"snakemake {SAE_FOLDER}/scores.json --configfile mine.yaml" in out
    assert out.splitlines()[-1].endswith("1 problem")


@pytest.mark.parametrize(
    ("path", "n"),
    [
        (f"{STORE}.zarr", 1),
        (f"{STORE}.json", 1),
        (f"{SAE_FOLDER}/training.csv", 1),
        (f"{SAE_FOLDER}/sae_weights.safetensors", 1),
        ("results/smollm2-135m/model", 1),
        ("results/smollm2-135m/model/config.json", 1),
        ("results/studies", 1),
        ("results/smollm2-135m/python-docs", 5),
        (SAE_FOLDER, 1),
    ],
)
def test_any_part_of_an_artifact_may_be_named(project, run, path, n):
    status, out, _ = run("verify", path)
    assert status == 0
    assert out.startswith(f"{n} artifact")


def test_many_problems_of_one_artifact_are_cut_short(project, run):
    shutil.rmtree(f"{STORE}.zarr/activations")
    status, out, _ = run("verify", f"{STORE}.json")
    assert status == 1
    assert "problems more" in out and len(out.splitlines()) == 7


def test_large_stores_show_progress(project, run, monkeypatch):
    monkeypatch.setattr(verify, "Progress", lambda *a: verify_progress.append(a) or Recorder())
    verify_progress = []
    run("verify")
    assert verify_progress[0][1:] == ("MB", "verify")


class Recorder:
    def update(self, n):
        assert n >= 0


# --- inspect ------------------------------------------------------------------------------------
def facts_shown(out):
    return dict(line.split(None, 1) for line in out.splitlines() if len(line.split(None, 1)) == 2)


def test_inspect_a_store(project, run):
    for path in (f"{STORE}.zarr", f"{STORE}.json"):
        status, out, err = run("inspect", path)
        assert status == 0 and err == ""
        assert "activations of one layer over one split" in out
        assert "ell 10" in out and "subject smollm2-135m" in out
        assert "tokens-train.json" in out
        assert "up to date" in out and "STALE" not in out
        row = next(line for line in out.splitlines() if line.startswith("  activations "))
        assert "sequence 40 × position 16 × d_model 8" in row and "float32" in row
        mean, sd = (float(x) for x in row.split()[-5:-3])
        assert abs(mean - 2.0) < 0.2 and abs(sd - 3.0) < 0.2 and row.split()[-1] == "0"
        assert max(map(len, out.splitlines())) <= 110


def test_inspect_says_what_is_stale(project, run):
    edit(Path("config.yaml"), "dtype: auto  ", "dtype: float32")
    flip(Path(f"{STORE}.zarr/activations/c/2/0/0"))
    status, out, _ = run("inspect", f"{STORE}.zarr")
    assert status == 0
    assert 'STALE: harvest.dtype was "auto" and is "float32" in the config' in out
    assert "STALE: activations-train.zarr/activations/c/2/0/0 has changed" in " ".join(out.split())
    assert "snakemake" in out
    assert "do not fit their checksum" in " ".join(out.split())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("results/studies/demo/grid.csv", ["6 rows", "score table of a study", "r2", "head"]),
        (f"{SAE_FOLDER}/per_sequence.parquet", ["6 rows, 3 columns", "l_recon_nats_all", "3.5"]),
        (SAE_FOLDER, ["TopK sparse autoencoder", "W_enc", "8 × 8", "architecture topk", "fvu"]),
        (f"{SAE_FOLDER}/scores.json", ["untrained", "CE rec", "0.5 (0.4, 0.6)"]),
        (f"{SAE_FOLDER}/cfg.json", ["TopK sparse autoencoder", "architecture", "topk"]),
        ("results/smollm2-135m/model", ["language model", "model_type llama", "model.safetensors"]),
        ("results/smollm2-135m/subject.json", ["language model", "n_layers 30"]),
        ("results/smollm2-135m/model/model.safetensors", ["1 tensors, 12 values", "4 × 3", "F32"]),
        ("results", [f"{N_ARTIFACTS} artifacts", "spec fits", "studies/demo/grid.json"]),
    ],
)
def test_inspect_every_kind(project, run, path, says):
    status, out, _ = run("inspect", path)
    assert status == 0
    for words in says:
        assert words in out, out


def test_inspect_a_folder_with_damage(project, run):
    Path(f"{STORE}.json").write_text("{")
    edit(Path("config.yaml"), "resamples: 5000", "resamples: 500")
    status, out, _ = run("inspect", "results")
    assert status == 0
    states = {line.split()[-1]: line.split()[0] for line in out.splitlines()[2:]}
    assert states[f"{STORE}.json".removeprefix("results/")] == "DAMAGED"
    assert states[f"{SAE_FOLDER}/scores.json".removeprefix("results/")] == "STALE"


def test_inspect_works_without_a_usable_config(project, run):
    edit(Path("config.yaml"), "trainer: native", "trainer: naive")
    status, out, _ = run("inspect", f"{STORE}.json")
    assert status == 0
    assert "spec not compared" in out and "sae.trainer is 'naive'" in " ".join(out.split())
    assert run("verify")[0] == 2


@pytest.mark.parametrize(
    "path",
    [
        f"{STORE}.zarr",
        "results/smollm2-135m/python-docs/tokens-train.json",
        SAE_FOLDER,
        f"{SAE_FOLDER}/training.csv",
        "results/studies/demo/grid.json",
        f"{SAE_FOLDER}/per_sequence.parquet",
    ],
)
def test_plot(project, run, path):
    status, out, _ = run("inspect", path, "--plot", "x.png")
    assert status == 0 and out.endswith("picture: x.png\n")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_are_streamed_and_exact():
    rng = np.random.default_rng(1)
    parts = [rng.normal(1e6, 1.0, n) for n in (1, 1000, 37)]
    moments = contents.Moments()
    for part in parts:
        moments.add(part)
    moments.add(np.array([np.nan, np.inf]))
    everything = np.concatenate(parts)
    assert moments.n == everything.size and moments.bad == 2
    np.testing.assert_allclose(moments.mean, everything.mean(), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(moments.m2 / moments.n), everything.std(), rtol=1e-9)
    assert (moments.low, moments.high) == (everything.min(), everything.max())


def test_samples_of_large_arrays_are_bounded_and_even(project, monkeypatch):
    monkeypatch.setattr(contents, "SAMPLE_BYTES", 4 * 4 * 16 * 8 * 3)  # three chunks
    opened = layer_stores.Store(f"{STORE}.zarr")
    parts = list(contents.sample(opened, "activations"))
    assert len(parts) == 3 and all(part.shape == (4, 16, 8) for part in parts)
    whole = opened.read("activations")
    np.testing.assert_array_equal(parts[0], whole[:4])
    np.testing.assert_array_equal(parts[1], whole[18:22])
    np.testing.assert_array_equal(parts[2], whole[36:])


# --- bad input ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inspect", f"{STORE}.zar"], "Did you mean"),
        (["inspect", "nowhere/x"], "does not exist"),
        (["inspect", "config.yaml"], "no artifact"),
        (["inspect", "workflow"], "holds no artifact"),
        (["inspect", "broken.parquet"], "not a readable table"),
        (["inspect", "broken.csv"], "not a readable table"),
        (["inspect", "broken.safetensors"], "not a safetensors file"),
        (["inspect", "broken.json"], "not JSON"),
        (["inspect", "broken.zarr"], "broken.zarr"),
        (["inspect", "results", "--plot", "x.docx"], "not a picture's name"),
        (["inspect", "results/smollm2-135m/subject.json", "--plot", "x.png"], "no picture"),
        (["inspect", SAE_FOLDER, "--plot", "nowhere/x.png"], "nowhere"),
        (["verify", "nowhere"], "does not exist"),
        (["verify", "workflow"], "no artifact"),
        (["verify", "--configfile", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["audit", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(project, run, words, says):
    for name in ("broken.parquet", "broken.csv", "broken.safetensors", "broken.json"):
        Path(name).write_bytes(b"\x00\xff\x01\x02")
    Path("broken.zarr").mkdir()
    status, _, err = run(*words)
    assert status == 2
    assert len(err.splitlines()) == 1 and err.startswith("streamgauge: ") and says in err


def test_outside_a_checkout_files_are_still_checked(project, run, tmp_path, monkeypatch):
    """A copied artifact can be inspected anywhere; its spec is compared with the installed code."""
    shutil.copytree(f"{STORE}.zarr", tmp_path / "elsewhere/activations-train.zarr")
    shutil.copy(f"{STORE}.json", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, out, _ = run("inspect", "activations-train.zarr")
    assert status == 0 and "tokens-train.json is missing" in " ".join(out.split())


COMMANDS = ("inspect", "verify", "estimate", "compare", "audit")


def test_help_and_unknown_commands():
    for words in (["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main.main(["conquer"])
    assert ended.value.code == 2
