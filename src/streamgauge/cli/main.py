"""The command line: one subcommand a question, each a few lines over the library."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from streamgauge import __version__
from streamgauge.artifacts import look as inspect
from streamgauge.artifacts import verify
from streamgauge.base import ends, project
from streamgauge.base.errors import StreamgaugeError
from streamgauge.planning import config

_PICTURES = (".svg", ".png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``streamgauge``; the process's own by default.

    Returns:
        Exit status: 0 well, 1 `verify` found a mismatch or `adopt` left something stale, 2 bad
        input or another end before its time (one line on stderr), 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(words).parse_args(words)
        return options.run(options)
    except BrokenPipeError:  # e.g. `streamgauge inspect X | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        status = ends.tell(error, "streamgauge")
        return status if status == ends.INTERRUPTED else 2


class _Snakefile(argparse.Action):
    def __call__(self, parser, *_):
        print(project.pipeline() / "Snakefile")
        parser.exit()


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamgauge",
        description="Look at what a study made, check it, price a study; compare or audit SAEs.",
    )
    parser.add_argument("--version", action="version", version=f"streamgauge {__version__}")
    parser.add_argument(
        "--snakefile",
        action=_Snakefile,
        nargs=0,
        help='print where the workflow lies, for snakemake -s "$(streamgauge --snakefile)"',
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--configfile",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="overlays on config.yaml, as given to snakemake",
    )

    look = commands.add_parser(
        "inspect",
        parents=[shared],
        help="what an artifact is, from what, whether it is stale, quick statistics",
        description="What an artifact is, from what, whether it is stale, and quick statistics.",
    )
    look.add_argument("path", metavar="PATH", help="any artifact, or a folder of them")
    look.add_argument("--plot", metavar="FILE", help="also draw it (.svg or .png)")
    look.set_defaults(run=_inspect)

    check = commands.add_parser(
        "verify",
        parents=[shared],
        help="compare artifacts with their manifests, today's config and code",
        description="Compare every file with the digest in its manifest, and every manifest's spec "
        "with today's config and code. Exit status 1 when something does not fit.",
    )
    check.add_argument("paths", nargs="*", metavar="PATH", help="artifacts or folders (results)")
    check.set_defaults(run=_verify)

    take = commands.add_parser(
        "adopt",
        parents=[shared],
        help="after an upgrade: take over what today's code would make again",
        description="Of every artifact that is stale because code has changed, make a sample anew "
        "and compare it byte for byte. Where all is equal the artifact is taken over and will not "
        "be made again. Exit status 1 when something stays stale.",
    )
    if "adopt" in words[:1]:  # it brings snakemake
        from streamgauge.cli import adopt

        adopt.add_arguments(take)
        take.set_defaults(run=lambda options: adopt.run(options, *_project(options, ".")))

    price = commands.add_parser(
        "estimate",
        parents=[shared],
        help="tokens, FLOPs, GPU hours and disk of a study",
        description="Tokens, FLOPs, GPU hours and disk of every stage of a study, by arithmetic "
        "on the shapes of its models. Nothing is run.",
    )
    price.add_argument(
        "--tflops",
        type=float,
        default=30.0,
        metavar="RATE",
        help="sustained rate of one accelerator in TFLOP/s (%(default)g)",
    )
    price.add_argument(
        "--stores",
        action="store_true",
        help="list the stores too: disk, files, parts, and the reads that pay for them",
    )
    price.add_argument(
        "--gb-per-s",
        type=float,
        default=1.0,
        metavar="RATE",
        help="rate at which one job reads a store in GB/s (%(default)g)",
    )
    price.set_defaults(run=_estimate)

    gap = commands.add_parser(
        "compare",
        help="deltas across scale, correlations and k* of any table of results",
        description="Deltas across scale, correlations of R² and CE recovered, and k*, from a CSV "
        "file with the columns model, d_model, k, r2, ce_rec and any others that tell SAEs apart.",
    )
    gap.add_argument("rows", metavar="ROWS.csv", help="one row an SAE, or a study's grid.csv")
    gap.add_argument("--out", required=True, metavar="DIR", help="folder for the three tables")
    gap.add_argument(
        "--targets",
        default="0.85,0.9",
        metavar="LIST",
        help="levels of CE recovered that k* asks for (%(default)s)",
    )
    gap.set_defaults(run=_compare)

    judge = commands.add_parser(
        "audit",
        help="score an SAE somebody trained: does R² mislead here",
        description="Score an existing SAE on a model and a corpus beside its controls, and say "
        "whether its R² misleads, in which direction and how sure that is.",
    )
    if "audit" in words[:1]:  # it brings torch, for which the others would have to wait
        from streamgauge.cli import audit

        audit.add_arguments(judge)
        judge.set_defaults(run=audit.run)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    if options.plot and Path(options.plot).suffix not in _PICTURES:
        raise StreamgaugeError(
            "not a picture's name", where=options.plot, remedy=f"End it in {', '.join(_PICTURES)}."
        )
    root, valid = None, ""
    try:
        root, valid, _ = _project(options, options.path)
    except StreamgaugeError as error:
        if options.configfile:
            raise
        valid = str(error)
    print(inspect.describe(options.path, root, valid))
    if options.plot:
        from streamgauge.report import score_figures

        score_figures.save(inspect.picture(options.path), options.plot)
        print(f"\npicture: {options.plot}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    paths = options.paths or ["results"]
    root, valid, overlays = _project(options, paths[0])
    flags = project.flags(root / "Snakefile", overlays)
    return 0 if verify.verify(paths, root, valid, flags=flags) else 1


def _estimate(options: argparse.Namespace) -> int:
    from streamgauge.planning import estimate, store_layout

    _, valid, _ = _project(options, ".")
    shapes = estimate.shapes(valid, project.home() / "results")
    table = estimate.estimate(valid, shapes, tflops=options.tflops)
    print(f"study {valid['study']}, as if nothing were there yet")
    print(estimate.describe(table, options.tflops))
    if options.stores:
        rates = {"tflops": options.tflops, "gb_per_s": options.gb_per_s}
        print("\n" + store_layout.describe(store_layout.layout(valid, shapes, **rates), **rates))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from streamgauge.base.tables import write_csv
    from streamgauge.studies import proxy_gap

    targets = _numbers(options.targets, "--targets")
    rows = proxy_gap.read_rows(options.rows)
    tables = {
        "deltas": proxy_gap.compare_scales(rows),
        "correlations": proxy_gap.correlations(rows),
        "kstar": proxy_gap.k_star_table(rows, targets),
    }
    for sentence in proxy_gap.missing_cells(rows):
        print(f"streamgauge: {options.rows}: {sentence}", file=sys.stderr)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = out / f"{name}.csv"
        write_csv(table, path)
        print(f"{path}: {len(table)} rows")
    return 0


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise StreamgaugeError(
            f"{text!r} is no list of numbers", where=option, remedy="Write it as 0.85,0.9."
        )
    return numbers


def _project(options: argparse.Namespace, path: str) -> tuple[Path, dict, list[str]]:
    """The folder of the Snakefile, the validated config, and the overlays on its config.yaml."""
    root = project.pipeline(path)
    base = root / "config.yaml"
    # Snakemake lists config.yaml among its config files, and not always first
    overlays = [name for name in options.configfile if Path(name).resolve() != base.resolve()]
    for name in filter(os.path.isdir, overlays):  # what follows the flag belongs to it
        raise StreamgaugeError(
            "a folder, not a config file", where=name, remedy="Write PATH in front of --configfile."
        )
    valid = config.validate(
        config.load([base, *overlays]), where=" + ".join([base.name, *overlays])
    )
    return root, valid, overlays


if __name__ == "__main__":
    sys.exit(main())
