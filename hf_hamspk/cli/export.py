"""`hamspk export`: a model as an ONNX file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model

if TYPE_CHECKING:
    from ..export.onnx_graph import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk export`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("output", metavar="OUT.onnx", help="the file to write; replaced if it exists")
    parser.epilog = "Needs the packages of `pip install 'hf_hamspk[onnx]'`."


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    output = Path(arguments.output)
    if output.suffix != ".onnx" or output.is_dir():
        raise ValueError(f"{output} is no name of an ONNX file; it must end in .onnx.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}; make it first.")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Export, compare with the model, and print the differences."""
    from ..export.onnx_graph import export_onnx
    from ..loading.models import load_model

    for line in format_exported(export_onnx(load_model(arguments.model, "cpu"), Path(arguments.output))):
        print(line)
    return 0


def format_exported(exported: "Exported") -> list[str]:
    """Lines for people."""
    from ..export.onnx_graph import LARGEST_DIFFERENCE

    lines = ["seconds  batch  difference from torch"]
    lines += [f"{one.seconds:7g}  {one.batch:5d}  {one.difference:.1e}" for one in exported.agreements]
    padded = "padded batches with their attention mask" if exported.masked else "batches without padding only"
    lines.append(
        f"differences are shares of the largest value of an embedding; up to {LARGEST_DIFFERENCE:g} is accepted"
    )
    lines.append(f"written: {exported.path} ({exported.size / 1e6:.1f} MB; waveforms in, embeddings out, {padded})")
    lines.append(f'to use it: pipeline("speaker-verification", model=..., onnx_file="{exported.path.name}")')
    return lines
