"""The page on scale: every table of arithmetic is computed again from the library."""

import math
import re
from pathlib import Path

import pytest
import yaml

from streamgauge.artifacts import costs
from streamgauge.artifacts.stages import STAGES
from streamgauge.planning import config, estimate
from streamgauge.planning import store_layout as layout

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/scale.md").read_text()
TFLOPS = 30.0
# the two studies of the page: one layer of one model each
STUDIES = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]


class Study:
    """A study of the page with other entries of its grid, its shapes and what it costs."""

    def __init__(self, overlay, **grid):
        merged = config.load([ROOT / "config.yaml"])
        overlay = overlay | {"grid": overlay["grid"] | grid}
        for block, keys in overlay.items():
            merged[block] = {**merged[block], **keys} if isinstance(keys, dict) else keys
        self.config = config.validate(merged)
        self.shapes = estimate.shapes(self.config, "nowhere")
        (self.shape,) = self.shapes.values()
        ((self.layer,),) = self.config["grid"]["layers"].values()
        table = estimate.estimate(self.config, self.shapes, tflops=TFLOPS)
        self.stages = table.set_index("stage")
        self.stores = self.layout(TFLOPS, 1.0)

    def layout(self, tflops, gb_per_s):
        table = layout.layout(self.config, self.shapes, tflops=tflops, gb_per_s=gb_per_s)
        return table.set_index(table.store.str.rpartition("/")[2])

    def a_token(self, name, split="train"):
        """FLOPs a token of one artifact of the study."""
        (subject,), (corpus,) = self.config["grid"]["subjects"], self.config["grid"]["corpora"]
        place = {"subject": subject, "corpus": corpus, "ell": f"{self.layer:02d}", "split": split}
        work = STAGES[name].cost(self.config, place, self.shape)
        return work.flops / work.tokens


BOTH = [Study(overlay) for overlay in STUDIES]


def rows(title):
    """The tables below a heading: their rows, without the header, as lists of cells."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", section, re.M)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in found
    ]


def size(n):
    return f"{n / 1e12:,.1f} TB" if n >= 1e12 else f"{n / 1e9:,.1f} GB"


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}"


def power(x):
    return re.sub(r"e\+0?", "e", f"{x:.1e}")


# --- tables -------------------------------------------------------------------------------------
def disk():
    held = ["activations-eval", "gradients-eval", "probes-eval"]
    probed = [Study(overlay, objectives=["behavioral"]) for overlay in STUDIES]
    # token ids and documents, int32
    tokens = [8 * s.stages.tokens["tokens"] for s in BOTH]
    train = [s.stores.disk_bytes["activations-train"] for s in BOTH]
    return [
        ["token ids and documents", "8", *map(size, tokens)],
        ["activations of the training rows", "2 d + 4", *map(size, train)],
        [
            "activations, gradients and probes of the evaluation rows",
            "24 d",
            *(size(s.stores.disk_bytes[held].sum()) for s in BOTH),
        ],
        [
            "probes of the training rows, for `behavioral`",
            "16 d",
            *(size(s.stores.disk_bytes["probes-train"]) for s in probed),
        ],
        ["the eight SAEs", "", *(size(s.stages.disk_bytes["train"]) for s in BOTH)],
    ]


def files():
    return [
        [
            f"`{store.Index}`, {s.shape.d_model}",
            size(store.disk_bytes),
            f"{store.shard_bytes / 1e6:.1f} MB",
            f"{store.shards:,}",
            f"{store.files:,}",
            str(store.parts),
        ]
        for s in BOTH
        for store in s.stores.itertuples()
    ]


def hours():
    stages = ("harvest", "gradients", "probes", "train", "evaluate", "total")
    return [
        [
            stage,
            *(
                cell
                for s in BOTH
                for cell in (power(s.stages.flops[stage]), number(s.stages.gpu_hours[stage]))
            ),
        ]
        for stage in stages
    ]


def training():
    found = []
    for overlay in STUDIES:
        for expansion in (8, 32, 128):
            s = Study(overlay, expansion=[expansion], k=[64])
            d, run = s.shape.d_model, s.stages.loc["train"]
            speed = TFLOPS * 1e12 / (run.flops / run.tokens)
            found.append(
                [
                    str(d),
                    f"{expansion * d:,}",
                    power(run.flops / run.tokens),
                    f"{speed:,.0f}",
                    f"{speed * 2 * d / 1e9:.2g}",
                    number(run.gpu_hours),
                    size(32 * expansion * d * d),
                    f"{s.a_token('harvest') * run.tokens / run.flops:.2g}",
                ]
            )
    return found


def store_or_stream():
    found = []
    for overlay in STUDIES:
        (subject,), n_layers = overlay["grid"]["subjects"], Study(overlay).shape.n_layers
        for layer in (0, n_layers // 2, n_layers - 1):
            objectives = ["mse", "behavioral"]
            s = Study(overlay, layers={subject: [layer]}, objectives=objectives)
            kinds = {"": ("harvest", "activations-train")}
            if layer == n_layers // 2:
                kinds[", probes"] = ("probes", "probes-train")
            for kind, (stage, name) in kinds.items():
                # norms are not read in training
                read = 2 * s.shape.d_model * (s.config["probes"]["count"] if kind else 1)
                a_byte = s.a_token(stage) / read
                passes = (
                    s.layout(*rates).pays_from[name]
                    for rates in ((30.0, 1.0), (300.0, 1.0), (300.0, 0.2))
                )
                found.append(
                    [
                        f"{s.shape.d_model}, {layer} of {n_layers}{kind}",
                        f"{a_byte:,.0f}",
                        f"{TFLOPS * 1e6 / a_byte:,.0f}",
                        number(1e12 * a_byte / (TFLOPS * 1e12) / 3600),
                        *("never" if math.isinf(n) else f"{n:.0f}" for n in passes),
                    ]
                )
    return found


def serial():
    _, rates = rows("What was measured")
    speed = {name: [float(cell) for cell in cells] for name, *cells in rates}
    peak = int(re.search(r"(\d+) bytes a token at its peak", PAGE).group(1))
    steps = ("gather activations: read, check, norms, means", "digests of the manifest")
    largest = [s.stores.disk_bytes["activations-train"] for s in BOTH]
    gathers = [
        sum(n / (1e9 * speed[step][i]) for step in steps) / 3600 for i, n in enumerate(largest)
    ]
    slowest = [
        Study(overlay, expansion=[32], k=[128]).stages.gpu_hours["train"] for overlay in STUDIES
    ]
    memory = [peak * s.stores.tokens["activations-train"] for s in BOTH]
    return [
        ["tokens of the training rows", "memory", *map(size, memory)],
        ["gather of the training activations", "reading, one core", *map(a_time, gathers)],
        ["one SAE of 32 d latents, k = 128", "one GPU, 30 TFLOP/s", *map(a_time, slowest)],
    ]


def a_time(hours):
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def measured():
    bench = (ROOT / "docs/performance.md").read_text()
    harvested = re.search(r"^\| harvest \| ([\d,]+) tokens/s", bench, re.M).group(1)
    layer = int(re.search(r"bare forward to layer (\d+)", bench).group(1))
    d, k, first = 576, 32, BOTH[0]
    smollm = costs.Shape(d, 30, 49152)
    found = [
        (
            f"harvest, SmolLM2-135M to layer {layer}, two cores",
            harvested,
            smollm.blocks(layer + 1),
            first.stages.flops["harvest"],
        )
    ]
    for m in (4608, 18432):
        trained = re.search(rf"^\| {m} \| streamgauge \| ([\d,]+) ", bench, re.M).group(1)
        an_sae = Study(STUDIES[0], expansion=[m // d], k=[k]).stages.flops["train"]
        step = 2 * d * m + 8 * d * k
        found.append((f"SAE step, d_model {d}, d_sae {m:,}, one thread", trained, step, an_sae))
    cells = []
    for what, speed, a_token, whole in found:
        rate = int(speed.replace(",", "")) * a_token
        hours = whole / rate / 3600
        cells.append([what, speed, power(a_token), f"{rate / 1e12:.2g}", f"{number(hours)} h"])
    return cells


TABLES = {
    "Disk": disk,
    "Shards, files, parts": files,
    "GPU hours": hours,
    "Training, and how fast a store must be read": training,
    "Store or stream": store_or_stream,
    "What does not get faster with more jobs": serial,
    "What was measured": measured,
}


@pytest.mark.parametrize("title", TABLES)
def test_tables_are_computed(title):
    assert rows(title)[0] == TABLES[title]()


def test_sentences_repeat_the_tables():
    first, second = BOTH
    saved = [7 * s.stages.gpu_hours["harvest"] for s in BOTH]
    files, shards = second.stores.loc["activations-train", ["files", "shards"]]
    probes = disk()[3][-1]
    said = [
        f"the billion tokens need about {round(files, -3):,} files",
        # activations/c/7/0 and norm/c/7 hold shard 7
        f"files and {round(3 * shards, -3):,} folders, and {round(2 * shards, -3):,} folders more",
        f"In the first study that is {saved[0]:.0f} hours for {disk()[1][2].split('.')[0]} GB",
        f"in the second, {saved[1]:.0f} hours for {disk()[1][3]}",
        f"a billion of them take {float(probes.split()[0]):.0f} TB",
        f"use up {training()[0][4]} GB/s",
        f"{first.stores.disk_bytes['activations-train'] / 1e9:.0f} GB at 1 GB/s are"
        f" {first.stores.disk_bytes['activations-train'] / 6e10:.1f} minutes",
    ]
    for sentence in said:
        assert sentence in PAGE
