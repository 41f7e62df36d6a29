"""`hamspk push`: publish a model folder on the Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import given_options

if TYPE_CHECKING:
    from ..publishing.about import About
    from ..publishing.contents import UploadPlan


def add_about_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `hamspk push` and `hamspk card` share."""
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="DIR",
        help="folder of the training run; provides the recipe, evaluation and plots that the model folder lacks",
    )
    parser.add_argument(
        "--about",
        metavar="FILE.yaml",
        help="file of facts that the authors state for the card: training_data with licences, trial_lists, "
        "limitations, ...",
    )
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights, such as cc-by-4.0 (default: a licence that the training data allow)",
    )


def read_about(arguments: argparse.Namespace) -> "About":
    """Read the authors' facts from --about and --licence."""
    from dataclasses import replace

    from ..publishing.about import About

    about = About() if arguments.about is None else About.read(arguments.about)
    return about if arguments.licence is None else replace(about, licence=arguments.licence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk push`."""
    parser.add_argument(
        "model", metavar="MODEL_FOLDER", help="folder of a trained model, such as the folder 'final' of a training run"
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="name of the repository on the Hub")
    add_about_arguments(parser)
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="make a new repository private (the default)")
    visibility.add_argument(
        "--public", action="store_true", help="make a new repository public, or upload to an existing public repository"
    )
    parser.add_argument(
        "--no-cohort", action="store_true", help="leave out the cohort, which contains embeddings of speakers"
    )
    parser.add_argument(
        "--speaker-names",
        action="store_true",
        help="publish the names of training speakers and unusable files (default: numbers replace the names)",
    )
    parser.add_argument(
        "--message", metavar="TEXT", help="commit message (default: Upload a speaker model with its card)"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="list the files without sending them; needs no network")
    instead.add_argument(
        "--output",
        metavar="DIR",
        help="write the files into this new or empty folder without sending them; needs no network",
    )
    parser.epilog = (
        "One commit contains the weights (safetensors only), code, configuration, calibration, cohort, recipe,\n"
        "evaluation, plots, model card and licence. Audio is never sent. If a file contains a path of this machine\n"
        "or an access token, nothing is sent.\n"
        "\n"
        "Log in first with `hf auth login`. After an interrupted upload, run the same command again."
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the files to upload, and upload them to the Hub unless --dry-run or --output is given."""
    from ..publishing.contents import plan_upload, write_plan
    from ..publishing.push import check_repository, send

    check_repository(arguments.repository)
    folder = None if arguments.output is None else Path(arguments.output)
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output must be a new or empty folder, but {folder} already exists. Choose another one.")
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
    if folder is not None:
        write_plan(plan, folder)
        print(f"written: {folder} (nothing was sent)")
        return 0
    commit = send(plan, arguments.repository, not arguments.public, **given_options(arguments, "message"))
    print(f"{arguments.repository} is at revision {commit.oid}: {commit.commit_url}")
    return 0


def format_plan(plan: "UploadPlan") -> str:
    """Format the files to upload with their sizes, the files left out, and the notes for printing."""
    width = max(map(len, plan.names)) + 2
    lines = [f"{file.name:<{width}}{format_size(file.size):>10}" for file in plan.files]
    lines.append(f"{f'{len(plan.files)} files':<{width}}{format_size(plan.size):>10}")
    lines += [f"not sent: {name} ({reason})" for name, reason in plan.left_out.items()]
    return "\n".join(lines + [f"note: {note}" for note in plan.notes])


def format_size(size: float) -> str:
    """Format a number of bytes with its unit, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
