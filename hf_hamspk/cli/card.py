"""`hamspk card`: render a model card, and save the facts of the card as JSON beside it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.recognising import check_replaceable, is_card_file
from ..folders.writing import write_atomically
from .push import add_about_arguments, read_about

if TYPE_CHECKING:
    from ..publishing.facts import CardFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk card`."""
    parser.add_argument("source", metavar="SOURCE", help="model folder, recipe, or FILE.json of an earlier card")
    add_about_arguments(parser)
    parser.add_argument("--repository", metavar="OWNER/NAME", help="name of the model on the Hub, if it is published")
    parser.add_argument("--measure-speed", action="store_true", help="measure the speed of the model on this machine")
    parser.add_argument("--output", metavar="FILE.md", help="file for the card (default: print the card)")
    parser.epilog = (
        "SOURCE is the folder of a trained model, a recipe, or FILE.json. The card of a recipe contains no measured\n"
        "numbers. With --output FILE.md, the facts of the card are saved in FILE.json. If SOURCE is FILE.json, the\n"
        "card is rendered again from these facts. --about FILE.json reads the facts that the authors stated."
    )


def run(arguments: argparse.Namespace) -> int:
    """Gather or read the facts of a card, render it, and write or print it."""
    from ..publishing.card import render_card
    from ..publishing.push import check_repository

    source = Path(arguments.source)
    if source.suffix == ".json":
        return _render_again(source, arguments)
    if arguments.repository is not None:
        check_repository(arguments.repository)
    facts = _gather(source, arguments)
    card = render_card(facts)
    if arguments.output is None:
        print(card, end="")
        return 0
    output = Path(arguments.output)
    if output.suffix != ".md":
        raise ValueError(
            f"--output must end in .md, got {output}. The facts are written beside it, into a file that ends in .json."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    texts = {output.with_suffix(".json"): facts.to_json(), output: card}
    for path in texts:
        check_replaceable(path, is_card_file, "a model card")
    for path, text in texts.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    print(f"card: {output}, facts: {output.with_suffix('.json')}")
    return 0


def _render_again(source: Path, arguments: argparse.Namespace) -> int:
    given = {"run": arguments.run_folder, "about": arguments.about, "licence": arguments.licence}
    for name, value in (given | {"repository": arguments.repository}).items():
        if value is not None:
            raise ValueError(
                f"--{name} needs a model folder or a recipe as SOURCE, but {source} contains the facts of a card. Edit "
                "the facts in that file instead."
            )
    if arguments.measure_speed:
        raise ValueError(f"--measure-speed needs a model folder as SOURCE, got {source}.")
    if not source.is_file():
        raise ValueError(f"File not found: {source}.")
    from ..publishing.card import render_card
    from ..publishing.facts import CardFacts

    card = render_card(CardFacts.from_json(source.read_text(encoding="utf-8"), str(source)))
    output = source.with_suffix(".md") if arguments.output is None else Path(arguments.output)
    check_replaceable(output, is_card_file, "a model card")
    write_atomically(output, lambda temporary: temporary.write_text(card, encoding="utf-8"))
    print(f"card: {output}")
    return 0


def _gather(source: Path, arguments: argparse.Namespace) -> "CardFacts":
    from dataclasses import replace

    from ..loading.models import load_model
    from ..publishing import speed
    from ..publishing.facts import facts_of_recipe, gather_facts
    from ..publishing.origin import check_origin

    about = read_about(arguments)
    if source.is_dir():
        if arguments.measure_speed:
            about = replace(about, speed=speed.measure_speed(load_model(str(source))))
        facts = gather_facts(source, arguments.repository, arguments.run_folder, about)
        check_origin(source, facts)
        return facts
    if not source.is_file():
        raise ValueError(f"SOURCE not found: {source}. Expected a model folder, a recipe, or FILE.json of a card.")
    if arguments.run_folder is not None or arguments.repository is not None or arguments.measure_speed:
        raise ValueError(
            f"--run, --repository and --measure-speed need a model folder as SOURCE, but {source} is a recipe."
        )
    return facts_of_recipe(source, about)
