"""`hamspk convert`: a checkpoint of another project, brought into the format of this one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..conversion import Converted

# Those of the package, which a test compares.
SOURCE_KINDS = ("speechbrain", "wespeaker", "official", "xvector")
_UNKNOWN_LICENCE = "not stated beside the weights: find it out before you share the model, and record it with --licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk convert`."""
    parser.add_argument("source", metavar="SOURCE", help="folder as its project lays it out, or checkpoint file")
    parser.add_argument("output", metavar="OUTPUT", help="new folder for the converted model")
    parser.add_argument(
        "--from", dest="kind", choices=SOURCE_KINDS, help="kind of the source (default: recognised by its files)"
    )
    parser.add_argument("--source-name", metavar="NAME", help="name of the source on the Hub, written into the model")
    parser.add_argument("--licence", metavar="ID", help="licence of the source (default: that of its README.md)")
    parser.epilog = (
        "speechbrain: hyperparams.yaml, embedding_model.ckpt (ECAPA-TDNN)\n"
        "wespeaker:   config.yaml, avg_model.pt (ECAPA_TDNN...)\n"
        "official:    a checkpoint file of TaoRuijie's trainer or of the released HAM code\n"
        "xvector:     config.json, weights (WavLM, wav2vec2, UniSpeech-SAT, data2vec-audio ForXVector)\n"
        "\n"
        "Only tensors are read; a checkpoint that would run code is refused."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder; choose a new one.")
    if not Path(arguments.source).exists():
        raise ValueError(
            f"There is no file or folder {arguments.source}. Only local files are converted: download them first."
        )


def run(arguments: argparse.Namespace) -> int:
    """Convert, save, and report what was taken."""
    from ..conversion import convert, stated_licence

    source, output = Path(arguments.source), Path(arguments.output)
    converted = convert(source, arguments.kind)
    model = converted.model
    if arguments.source_name is not None:
        model.config.converted_from = f"{converted.source} ({arguments.source_name})"
    licence = arguments.licence if arguments.licence is not None else stated_licence(source)
    model.config.source_licence = licence
    model.save_pretrained(output)
    for line in format_converted(converted, licence):
        print(line)
    print(f"written: {output} (AutoModel.from_pretrained; to fine-tune with a HAM head: initial_model: {output})")
    return 0


def format_converted(converted: "Converted", licence: str | None) -> list[str]:
    """Lines for people: what was read, the model, and what was not taken."""
    config = converted.model.config
    parameters = sum(parameter.numel() for parameter in converted.model.parameters())
    lines = [
        f"read: {config.converted_from}, from {', '.join(converted.read)}",
        f"model: {parameters:,} parameters, embeddings of {config.embedding_size}, {config.sampling_rate} Hz",
    ]
    lines += [f"not taken: {name} ({why})" for name, why in converted.left_out.items()]
    lines += [f"note: {note}" for note in converted.notes]
    lines.append(f"licence: {_UNKNOWN_LICENCE if licence is None else f'{licence}, that of the source'}")
    return lines
