"""Entry point of the command line: `hamspk COMMAND ...` or `python -m hf_hamspk COMMAND ...`."""

import argparse
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence

import hf_hamspk

from .cli.options import check_numbers

LONGEST_LINE = 2000
# Help text of each command. The module of a command is imported only if that command is given.
COMMANDS = {
    "train": "train a model from a recipe",
    "prepare": "write a corpus as shards, which training can stream",
    "calibrate": "calibrate a model with pairs of your own recordings, so that it also gives decisions",
    "evaluate": "measure EER and minDCF of a model on trial lists, and draw plots",
    "study": "compare training heads with equal search budgets and paired seeds",
    "hierarchy": "measure how far the embeddings and speaker centres of a model form a hierarchy",
    "sweep": "measure how error rates depend on duration, noise, reverberation, codec and bandwidth",
    "embed": "compute speaker embeddings of audio files",
    "verify": "decide whether recordings are of the same speaker",
    "enrol": "make speaker profiles from recordings, for `identify` and `verify`",
    "identify": "find out which of the enrolled speakers, if any, is speaking in a recording",
    "push": "publish a model on the Hub, with its card",
    "card": "render the model card of a trained model or of a recipe",
    "export": "export a model to an ONNX file, and compare its embeddings with those of torch",
    "convert": "convert a checkpoint of another project into a model of this package",
    "doctor": "check the installed packages, and repair torchaudio if it cannot be imported with a CPU-only torch",
    "demo": "train and verify on synthetic voices, without any download",
}
# These commands also work if transformers cannot be imported.
_WITHOUT_MODELS = {"doctor"}
# These commands parse the arguments that the parser of this module does not know.
_WITH_OWN_PARSER = {"train"}

# What to do about errors of the operating system.
_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), " Free some space on the disk, and run the same command again."),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        " Change the permissions, or choose another folder.",
    ),
}
USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    A command is a module of `cli` with the functions `add_arguments(parser)` and `run(arguments)`. An optional
    `check(arguments)` checks the arguments before torch is imported, after the ranges of numbers were checked.

    Args:
        argv: arguments after `hamspk`; None for the arguments of this process.

    Returns:
        Exit code: 0 for success, 1 if some inputs could not be used or a check found problems, 2 for an error, 130 if
        the command was interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        parser = make_parser(command)
        arguments, arguments.rest = parser.parse_known_args(words)
        if arguments.rest and arguments.command not in _WITH_OWN_PARSER:
            parser.error(f"unrecognized arguments: {' '.join(arguments.rest)}")
        check_numbers(arguments)
        if arguments.check is not None:
            arguments.check(arguments)
        if arguments.command not in _WITHOUT_MODELS:
            _import_models()
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("hamspk: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in words or not is_explained(error):
            raise
        print(f"hamspk: error: {one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


def _import_models() -> None:
    """Import the models, and turn off transformers' progress bars.

    Raises:
        ImportError: the models cannot be imported; the message gives the reason.
    """
    # Imports create objects that stay alive, so garbage collection would free nothing and slow the imports by 10 %.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _ = hf_hamspk.HamSpkModel
    finally:
        if was_enabled:
            gc.enable()
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    The parser contains the arguments of `command` only. For the others, it contains only names and summaries.
    """
    parser = argparse.ArgumentParser(
        prog="hamspk",
        description="Speaker verification with HAM-Softmax: train, evaluate, verify.",
        epilog="`hamspk COMMAND --help` shows the arguments of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hamspk {hf_hamspk.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            module = importlib.import_module(f".cli.{name}", __package__)
            module.add_arguments(own)
            own.set_defaults(run=module.run, check=getattr(module, "check", None))
        own.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show the Python traceback of an error"
        )
    return parser


def is_explained(error: Exception) -> bool:
    """Return whether the message of an error explains the problem to the user without a traceback."""
    return isinstance(error, ValueError | OSError | ImportError) or _is_refused_configuration(error)


def one_line(error: Exception) -> str:
    """Return the message of an error as one line; for an invalid configuration, the message of the cause."""
    cause = error.__cause__ if _is_refused_configuration(error) else None
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None and cause is None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}.{_CURES.get(error.errno, '')}"
    lines = str(error if cause is None else cause).splitlines()
    text = " ".join(line.strip() for line in lines if line.strip())
    # A message that repeats a value of a damaged file can be as long as the file.
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."


def _is_refused_configuration(error: Exception) -> bool:
    # If huggingface_hub was not imported, the error cannot come from it.
    errors = sys.modules.get("huggingface_hub.errors")
    return errors is not None and isinstance(error, errors.StrictDataclassError)


if __name__ == "__main__":
    sys.exit(main())
