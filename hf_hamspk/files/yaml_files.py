"""Read YAML files of users and of other projects.

An alias (`*name`) repeats a part of the file. A file of a few hundred bytes with aliases of aliases can describe
gigabytes, so aliases are not accepted.
"""

import os
from typing import Any

import yaml
from yaml.composer import ComposerError

LARGEST_YAML = 4 << 20
"""Largest size of a YAML file in bytes. Recipes and model descriptions have a few thousand bytes."""


class PlainLoader(yaml.SafeLoader):
    """Safe YAML loader that does not accept aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node.

        Raises:
            yaml.composer.ComposerError: the node is an alias.
        """
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise ComposerError(
                None, None, f"the alias *{event.anchor} is not accepted; write its value instead", event.start_mark
            )
        return super().compose_node(parent, index)


def load_yaml(path: str | os.PathLike[str], loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """Return the content of a YAML file as plain values.

    Args:
        path: path of the file.
        loader: loader class, a subclass of `PlainLoader`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, is not YAML in UTF-8, contains an alias or is nested too deeply. The message
            does not name the file.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"expected at most {LARGEST_YAML >> 20} MiB of YAML, got more")
    return parse_yaml(content, loader)


def parse_yaml(content: bytes, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """Return the values in the bytes of a YAML file.

    Args:
        content: bytes of the file in UTF-8.
        loader: loader class, a subclass of `PlainLoader`.

    Raises:
        ValueError: the content is not YAML in UTF-8, contains an alias or is nested too deeply.
    """
    try:
        return yaml.load(content.decode("utf-8-sig"), loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML raises a ValueError for a number or a date that Python does not accept, and a TypeError for a key that
    # cannot be a key of a dictionary.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
