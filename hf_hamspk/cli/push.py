"""`hamspk push`: publish a model folder on the Hub."""

import argparse
from typing import TYPE_CHECKING

from .options import given_options

if TYPE_CHECKING:
    from ..publishing.about import About
    from ..publishing.contents import UploadPlan


def add_about_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that render a card."""
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="DIR",
        help="folder of the training run: its recipe, and the evaluation if the model folder has none",
    )
    parser.add_argument(
        "--about",
        metavar="FILE.yaml",
        help="facts that only you know: training_data with licences, trial_lists, limitations, languages, ...",
    )
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights, such as cc-by-4.0 (default: one that those of the training data allow)",
    )


def read_about(arguments: argparse.Namespace) -> "About":
    """The facts stated on the command line."""
    from dataclasses import replace

    from ..publishing.about import About

    about = About() if arguments.about is None else About.read(arguments.about)
    return about if arguments.licence is None else replace(about, licence=arguments.licence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk push`."""
    parser.add_argument("model", metavar="MODEL_FOLDER", help="folder of a trained model, such as a run's 'final'")
    parser.add_argument("repository", metavar="OWNER/NAME", help="its name on the Hub")
    add_about_arguments(parser)
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="only you can see a new repository (the default)")
    visibility.add_argument("--public", action="store_true", help="anyone can see it")
    parser.add_argument("--no-cohort", action="store_true", help="do not send the cohort, embeddings of speakers")
    parser.add_argument(
        "--speaker-names", action="store_true", help="send the names of training speakers and of unusable files, too"
    )
    parser.add_argument(
        "--message", metavar="TEXT", help="of the commit (default: Upload a speaker model with its card)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent; needs no network")
    parser.epilog = (
        "Sends weights (safetensors only), code, configuration, calibration, cohort, recipe, evaluation, plots, a\n"
        "rendered card and the licence in one commit; never audio, no folder of this machine and no token. A new\n"
        "repository is private unless --public is given. After an interrupted upload give the same command again.\n"
        "Log in first: `hf auth login`."
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the files to send, and send them."""
    from ..publishing.contents import plan_upload
    from ..publishing.push import check_repository, send

    check_repository(arguments.repository)
    plan = plan_upload(
        arguments.model,
        arguments.repository,
        arguments.run_folder,
        read_about(arguments),
        not arguments.no_cohort,
        arguments.speaker_names,
    )
    print(format_plan(plan))
    if arguments.dry_run:
        print("dry run: nothing was sent")
        return 0
    commit = send(plan, arguments.repository, not arguments.public, **given_options(arguments, "message"))
    print(f"{arguments.repository} is at revision {commit.oid}: {commit.commit_url}")
    return 0


def format_plan(plan: "UploadPlan") -> str:
    """The files with their sizes, those that stay, and the notes."""
    width = max(map(len, plan.names)) + 2
    lines = [f"{file.name:<{width}}{format_size(file.size):>10}" for file in plan.files]
    lines.append(f"{f'{len(plan.files)} files':<{width}}{format_size(plan.size):>10}")
    lines += [f"stays here: {name} ({reason})" for name, reason in plan.left_out.items()]
    return "\n".join(lines + [f"note: {note}" for note in plan.notes])


def format_size(size: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
