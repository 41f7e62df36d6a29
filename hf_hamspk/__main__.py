"""The command line: `hamspk <command> ...`, also `python -m hf_hamspk <command> ...`."""

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence

import hf_hamspk

# Command to what it does. Their modules are imported when they are asked for.
COMMANDS = {
    "train": "train a model from a recipe",
    "prepare": "make shards of a corpus, for training that streams",
    "calibrate": "make decisions out of scores, by pairs of recordings of your own",
    "evaluate": "EER, minDCF and plots of a model on trial lists",
    "sweep": "error rates against duration, noise, reverberation, codec and bandwidth",
    "embed": "speaker embeddings of audio files",
    "verify": "are these recordings of the same speaker?",
    "enrol": "speaker profiles from recordings, for `identify` and `verify`",
    "identify": "which of the enrolled speakers is this, if any?",
    "push": "publish a model on the Hub, with its card",
    "card": "render a model card from what is known of a model",
    "export": "write a model as an ONNX file, checked against torch",
    "convert": "bring a checkpoint of another project into the format of this one",
    "doctor": "check the installed packages, and repair torchaudio beside a CPU-only torch",
    "demo": "train and verify on synthetic voices, without any download",
}
# Works where transformers cannot be imported.
_WITHOUT_MODELS = {"doctor"}
# Parses the words unknown to argparse itself.
_WITH_OWN_PARSER = {"train"}

USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    A command is a module of `cli` with `add_arguments(parser)`, `run(arguments)` and, if there is anything to refuse
    before torch is imported, `check(arguments)`.

    Args:
        argv: the words after `hamspk`; None takes those of the process.

    Returns:
        Exit code: 0; 1 if a part of the work could not be done; 2 for an error; 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        parser = make_parser(command)
        arguments, arguments.rest = parser.parse_known_args(words)
        if arguments.rest and arguments.command not in _WITH_OWN_PARSER:
            parser.error(f"unrecognized arguments: {' '.join(arguments.rest)}")
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
    """Import the models, or say why they cannot be; keep transformers from drawing a bar for each file."""
    # Imports create objects that stay: looking for garbage among them takes a tenth of their time.
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
    """The parser of everything; of the commands, only `command` gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="hamspk",
        description="Speaker verification with HAM-Softmax: train, evaluate, verify.",
        epilog="`hamspk COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hamspk {hf_hamspk.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            module = importlib.import_module(f".cli.{name}", __package__)
            module.add_arguments(own)
            own.set_defaults(run=module.run, check=getattr(module, "check", None))
        own.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where in the code an error arose"
        )
    return parser


def is_explained(error: Exception) -> bool:
    """Whether the message of an error tells the user by itself what was wrong with the input."""
    return isinstance(error, ValueError | OSError | ImportError) or _is_refused_configuration(error)


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks; of a refused configuration, the reason itself."""
    cause = error.__cause__ if _is_refused_configuration(error) else None
    lines = str(error if cause is None else cause).splitlines()
    return " ".join(line.strip() for line in lines if line.strip())


def _is_refused_configuration(error: Exception) -> bool:
    # Such an error exists only if huggingface_hub is imported.
    errors = sys.modules.get("huggingface_hub.errors")
    return errors is not None and isinstance(error, errors.StrictDataclassError)


if __name__ == "__main__":
    sys.exit(main())
