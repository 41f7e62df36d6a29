"""`hamspk study`: compare training heads with equal search budgets and paired seeds."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk study`."""
    parser.add_argument("study", metavar="STUDY.yaml", help="file of the study")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the study, with a folder per run")
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: when no run is left)")
    parser.add_argument("--hours", type=float, metavar="H", help="begin no further run after H hours")
    parser.epilog = """\
To resume, run the same command again. Several processes, also on several machines with a common file system, share the
runs if they are given the same FOLDER. Finished runs are not repeated.
"""


def check(arguments: argparse.Namespace) -> None:
    """Check the options and the file of the study before torch is imported.

    Raises:
        ValueError: an option or the file is invalid.
    """
    from ..study.plan import read_study

    for option, value in (("--runs", arguments.runs), ("--hours", arguments.hours)):
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, got {value}.")
    if Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise ValueError(f"--output must be a folder, got the file {arguments.output}.")
    arguments.plan = read_study(arguments.study)


def run(arguments: argparse.Namespace) -> int:
    """Run the study, and print how many runs are left."""
    from ..study.running import run_study

    left = run_study(arguments.plan, arguments.output, hours=arguments.hours, runs=arguments.runs)
    print(f"{left} of the planned runs are left" if left else "all planned runs are finished")
    return 0
