"""`hamspk hierarchy`: measure the hierarchy of the embeddings and centres of a model."""

import argparse
from pathlib import Path

from ..loading.names import check_model
from .options import add_channel_argument, add_model_arguments, add_table_arguments, given_options, table_columns

# Copies of values of the package, because importing the originals would import torch. A test compares them.
SPACE_NAMES, FEWEST = ("released", "curved", "free", "sphere", "euclidean"), 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk hierarchy`."""
    add_model_arguments(parser)
    parser.add_argument("table", metavar="TABLE", help="list of recordings with their speakers, such as a CSV file")
    parser.add_argument("--labels", nargs="+", default=[], metavar="COLUMN", help="columns of TABLE to compare with")
    parser.add_argument(
        "--within",
        metavar="COLUMN",
        help="one of --labels; some statistics also compare only speakers with the same value",
    )
    parser.add_argument(
        "--audio-root", metavar="FOLDER", help="base folder of the paths in TABLE (default: the folder of TABLE)"
    )
    add_table_arguments(parser)
    add_channel_argument(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for the report and the pictures")
    parser.add_argument(
        "--space",
        choices=SPACE_NAMES,
        help="space of the embeddings and centres (default: the space of the head); free is the space of the control "
        "heads of studies with a free radius",
    )
    parser.add_argument(
        "--permutations", type=int, metavar="N", help="number of permutations for p-values (default: 999)"
    )
    parser.add_argument(
        "--draws",
        type=int,
        metavar="N",
        help="number of random sets of points with which the shape is compared; 0 leaves this out (default: 99)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: 0)")
    parser.epilog = """\
The report compares the distances with trees (Gromov's four-point condition, cophenetic correlation, distortion), the
radii with properties of speakers and recordings, and dendrograms with the labels. Each statistic is shown beside the
same statistic of random points or of permuted labels. examples/guides/hierarchy.md explains the report.
"""


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments and the table before torch is imported.

    Raises:
        ValueError: an argument is invalid, or an input does not exist.
    """
    if not Path(arguments.table).exists():
        raise ValueError(f"Table not found: {arguments.table}. Expected a CSV file with path and speaker_id.")
    if arguments.within is not None and arguments.within not in arguments.labels:
        raise ValueError(f"--within must be one of --labels, got {arguments.within!r}.")
    for option in ("permutations", "draws"):
        value = getattr(arguments, option)
        if value is not None and value < FEWEST and not (option == "draws" and value == 0):
            also = ", or 0 to leave these comparisons out" if option == "draws" else ""
            raise ValueError(f"--{option} must be at least {FEWEST}, so that p can reach 0.05{also}, got {value}.")
    if Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise ValueError(f"--output must be a folder, got the file {arguments.output}.")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Measure the hierarchy, write the report and print it."""
    from ..hierarchy import HierarchySettings, check_report_folder, measure_hierarchy, write_hierarchy_report
    from ..loading.models import load_with_head

    check_report_folder(Path(arguments.output))
    options = given_options(arguments, "permutations", "draws", "seed")
    settings = HierarchySettings(tuple(arguments.labels), arguments.within, **options)
    model, has_centres = load_with_head(arguments.model, arguments.device)
    measured = measure_hierarchy(
        model,
        arguments.table,
        settings,
        audio_root=arguments.audio_root,
        space=arguments.space,
        channel=arguments.channel,
        columns=table_columns(arguments),
        centres=has_centres,
    )
    text, files = write_hierarchy_report(measured, arguments.output, Path(arguments.model).name)
    print(text)
    print(f"report: {', '.join(map(str, files))}")
    return 0
