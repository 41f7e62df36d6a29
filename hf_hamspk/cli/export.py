"""`hamspk export`: export a model to an ONNX file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.recognising import check_replaceable, is_onnx_file
from ..loading.names import check_model
from .embed import print_contents

if TYPE_CHECKING:
    from ..export.onnx_graph import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk export`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("output", metavar="OUT.onnx", help="file to write; an earlier export is replaced")
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="RECORDINGS",
        help="write the encoder in int8, for `hamspk embed --backend onnx --precision int8 --int8-file OUT.onnx`. "
        "RECORDINGS are audio files, or folders of them; at most 64 files are read. They show the ranges of the values "
        "in the encoder, so they should be like the recordings to embed, and of several speakers",
    )
    parser.epilog = "The export needs additional packages. Install them with `pip install 'hf_hamspk[onnx]'`."


def check(arguments: argparse.Namespace) -> None:
    """Check the model and the output file before torch is imported.

    Raises:
        ValueError: the model does not exist, the output does not end in `.onnx`, or its folder does not exist.
    """
    output = Path(arguments.output)
    if output.suffix != ".onnx" or output.is_dir():
        raise ValueError(f"OUT.onnx must be a file name that ends in .onnx, got {output}.")
    if not output.parent.is_dir():
        raise ValueError(f"Folder not found: {output.parent}. Create it first.")
    check_replaceable(output, is_onnx_file, "an exported model")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Export the model, compare the ONNX embeddings with those of torch, and print the differences."""
    from ..export.onnx_graph import export_onnx
    from ..loading.models import load_model

    # The work takes from seconds to minutes, depending on the model.
    print(f"exporting {arguments.model} to {arguments.output}, and comparing the two ...", flush=True)
    if arguments.int8 is not None:
        return _quantise_model(arguments)
    for line in format_exported(export_onnx(load_model(arguments.model, "cpu"), Path(arguments.output))):
        print(line)
    return 0


def _quantise_model(arguments: argparse.Namespace) -> int:
    """Write the model in int8, and print how far its embeddings are from float32."""
    from ..audio_hamspk import InputError
    from ..backends import quantise_onnx
    from ..backends.quantising import LARGEST_CALIBRATION, spread
    from ..data.audio import read_utterance
    from ..files.recordings import find_audio
    from ..loading.models import load_model

    found, missing = find_audio(arguments.int8)
    for name, reason in missing.items():
        if reason:
            print(f"skipped {name}: {reason}", file=sys.stderr)
    print_contents(found)
    model, waveforms = load_model(arguments.model, "cpu"), []
    for name in spread(found.files, LARGEST_CALIBRATION):
        try:
            waveforms.append(read_utterance(name, model.config.sampling_rate, str(name)).waveform)
        except InputError as error:
            print(f"skipped {error}", file=sys.stderr)
    cosines = quantise_onnx(model, arguments.output, waveforms)
    size = Path(arguments.output).stat().st_size / 1e6
    print(
        f"int8, calibrated with {len(waveforms)} recordings; cosine of their embeddings with float32: "
        f"{cosines['smallest']:.6f} or more, median {cosines['median']:.6f}"
    )
    print(f"written: {arguments.output} ({size:.1f} MB; input: features of one recording)")
    print(
        f"to use it: hamspk embed {arguments.model} ... --backend onnx --precision int8 --int8-file {arguments.output}"
    )
    return 0


def format_exported(exported: "Exported") -> list[str]:
    """Return the lines to print: the differences from torch, the path of the file, and code that loads the file."""
    from ..encoders_hamspk import LARGEST_DIFFERENCE

    lines = ["seconds  batch  difference from torch"]
    lines += [f"{one.seconds:7g}  {one.batch:5d}  {one.difference:.1e}" for one in exported.agreements]
    padded = "padded batches with their attention mask" if exported.masked else "batches without padding only"
    lines.append(
        f"each difference is relative to the largest value of an embedding; up to {LARGEST_DIFFERENCE:g} is accepted"
    )
    lines.append(f"written: {exported.path} ({exported.size / 1e6:.1f} MB; input: waveforms, {padded})")
    lines.append(f'to use it: pipeline("speaker-verification", model=..., onnx_file="{exported.path.name}")')
    return lines
