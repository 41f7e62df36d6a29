"""`hamspk push`: publish a model folder on the Hub."""

import argparse
from dataclasses import replace

from ..publishing.about import About
from ..publishing.contents import UploadPlan, plan_upload
from ..publishing.push import MESSAGE, check_repository, send

EPILOG = """\
Sends weights (safetensors only), code, configuration, calibration, cohort, recipe, evaluation, plots, a rendered card
and the licence in one commit; never audio, and nothing that names a folder of this machine or holds a token. A new
repository is private unless --public is given. After a broken upload give the same command again. Log in first:
`hf auth login`.
"""
_UNIT = 1000


def add_about_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that renders a card takes."""
    parser.add_argument(
        "--run", dest="run_folder", metavar="DIR", help="folder of the training run: its recipe, evaluation and plots"
    )
    parser.add_argument(
        "--about",
        metavar="FILE.yaml",
        help="what only you know: training_data with licences, trial_lists, limitations, languages, ...",
    )
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights, such as cc-by-4.0; by default one that carries on those of the training data",
    )


def read_about(arguments: argparse.Namespace) -> About:
    """What is stated on the command line."""
    about = About() if arguments.about is None else About.read(arguments.about)
    return about if arguments.licence is None else replace(about, licence=arguments.licence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk push`."""
    parser.add_argument("model", metavar="MODEL_FOLDER", help="folder of a trained model, such as a run's 'final'")
    parser.add_argument("repository", metavar="OWNER/NAME", help="its name on the Hub")
    add_about_arguments(parser)
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", help="only you can see a new repository (the default)")
    visibility.add_argument("--public", action="store_true", help="everybody can see it")
    parser.add_argument("--no-cohort", action="store_true", help="keep the cohort, embeddings of speakers, here")
    parser.add_argument("--speaker-names", action="store_true", help="send the names of the training speakers, too")
    parser.add_argument("--message", default=MESSAGE, help="of the commit (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent; needs no network")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Show the plan, then carry it out."""
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
    commit = send(plan, arguments.repository, not arguments.public, arguments.message)
    print(f"{arguments.repository} is at revision {commit.oid}: {commit.commit_url}")
    return 0


def format_plan(plan: UploadPlan) -> str:
    """Files with their sizes, what stays, and notes."""
    width = max(map(len, plan.names)) + 2
    lines = [f"{file.name:<{width}}{format_size(file.size):>10}" for file in plan.files]
    lines.append(f"{f'{len(plan.files)} files':<{width}}{format_size(plan.size):>10}")
    lines += [f"stays here: {name} ({reason})" for name, reason in plan.left_out.items()]
    return "\n".join(lines + [f"note: {note}" for note in plan.notes])


def format_size(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < _UNIT:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _UNIT
    return f"{size:.1f} GB"
