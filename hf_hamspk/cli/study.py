"""`hamspk study`: compare training heads with equal search budgets and paired seeds."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk study`."""
    parser.add_argument("study", metavar="STUDY.yaml", help="file of the study")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the study, with a folder per run")
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: when no run is left)")
    parser.add_argument("--hours", type=float, metavar="H", help="begin no further run after H hours")
    parser.add_argument(
        "--keep-models", action="store_true", help="keep the model of each final run, in the folder model of the run"
    )
    parser.add_argument("--report", action="store_true", help="write and print the report instead of running")
    parser.add_argument(
        "--open", action="store_true", help="with --report: show errors on the test lists although runs are missing"
    )
    parser.epilog = """\
To resume, run the same command again. Several processes, also on several machines with a common file system, share the
runs if they are given the same FOLDER. Finished runs are not repeated.

The report needs neither models nor audio. It shows errors on the test lists when all runs are finished.
"""


def check(arguments: argparse.Namespace) -> None:
    """Check the options and the file of the study before torch is imported.

    Raises:
        ValueError: an option or the file is invalid.
    """
    from ..study.plan import read_study

    if arguments.open and not arguments.report:
        raise ValueError("--open needs --report.")
    for option, value in (("--runs", arguments.runs), ("--hours", arguments.hours)):
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, got {value}.")
    if Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise ValueError(f"--output must be a folder, got the file {arguments.output}.")
    arguments.plan = read_study(arguments.study)


def run(arguments: argparse.Namespace) -> int:
    """Run the study and print how many runs are left, or write and print its report."""
    if arguments.report:
        from ..study.report import write_report

        text, files = write_report(arguments.plan, arguments.output, arguments.open)
        print(text)
        print(f"report: {', '.join(map(str, files))}")
        return 0
    from ..study.running import run_study

    left = run_study(
        arguments.plan,
        arguments.output,
        hours=arguments.hours,
        runs=arguments.runs,
        keep_models=arguments.keep_models,
    )
    print(f"{left} of the planned runs are left" if left else "all planned runs are finished")
    return 0
