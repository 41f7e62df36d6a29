"""`hamspk export`: a model as an ONNX file."""

import argparse
from pathlib import Path

from ..export.onnx_graph import TOLERANCE, Exported, export_onnx
from .models import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk export`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("output", metavar="OUT.onnx", help="the file to write; replaced if it exists")
    parser.epilog = "Takes the packages of `pip install 'hf_hamspk[onnx]'`."


def run(arguments: argparse.Namespace) -> int:
    """Export, check, and say how near the file comes."""
    output = Path(arguments.output)
    if output.suffix != ".onnx" or output.is_dir():
        raise ValueError(f"{output} is no name of an ONNX file; it must end in .onnx.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}; make it first.")
    exported = export_onnx(load_model(arguments.model, "cpu"), output)
    for line in report(exported):
        print(line)
    return 0


def report(exported: Exported) -> list[str]:
    """Lines for people."""
    lines = ["seconds  batch  difference from torch"]
    lines += [f"{one.seconds:7g}  {one.batch:5d}  {one.difference:.1e}" for one in exported.agreements]
    padded = "padded batches with their attention mask" if exported.masked else "batches without padding only"
    lines.append(f"differences are shares of the largest value of an embedding; up to {TOLERANCE:g} is accepted")
    lines.append(f"written: {exported.path} ({exported.size / 1e6:.1f} MB; waveforms in, embeddings out, {padded})")
    lines.append(f'to use it: pipeline("speaker-verification", model=..., onnx_file="{exported.path.name}")')
    return lines
