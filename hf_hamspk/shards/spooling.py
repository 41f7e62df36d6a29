"""Copies of sources that can be read in order only, from which the utterances are then taken in any order.

Mixing the speakers of a stream over all shards needs every file at hand. They are laid end to end, as they are, in
segments below the progress folder, which are removed at the end; until then the source takes its size again on the
disk. A segment is whole or absent, and notes the state of the stream after it, so that a copy can go on.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .archives import Member
from .listing import Listing
from .streams import Item, Stream
from .writing import publish, write_atomically

SEGMENT_BYTES = 512 * 2**20
"""A segment ends here: what a kill may cost."""
SEGMENT_ITEMS = 20_000
"""Or here: its names are held in memory."""

SPOOL_NAME = "spool.json"


def copy_streams(streams: Sequence[Stream], listing: Listing, folder: Path, fingerprint: str, progress: bool) -> None:
    """Copy what is not there yet, and list all of it.

    Args:
        streams: in order.
        listing: to which the utterances are added.
        folder: for the segments.
        fingerprint: of sources and options; segments of another are refused.
        progress: show a bar on stderr.

    Raises:
        ValueError: what lies there is of another source.
        OSError: the source cannot be reached, or the disk is full.
    """
    note = folder / SPOOL_NAME
    if note.is_file() and json.loads(note.read_text())["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder.parent} was begun with another source or other options; give the same again, or another folder, "
            "or begin anew (--restart)"
        )
    write_atomically(note, lambda path: path.write_text(json.dumps({"fingerprint": fingerprint})))
    with tqdm(desc="copying", unit="utt", disable=not progress) as bar:
        for number, stream in enumerate(streams):
            for path, facts in _segments(stream, number, folder):
                container = listing.add_container("tar", [path], stream.name)
                listing.refused += [(name, reason) for name, reason in facts["refused"]]
                for key, speaker, name, offset, size in facts["rows"]:
                    if listing.is_audio(name) or key is not None:
                        listing.add(container, Member(name, offset, size, size), speaker, key)
                bar.update(len(facts["rows"]))


def _segments(stream: Stream, number: int, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The segments of a stream: those on the disk, then new ones as they are made."""
    items = None
    state = None
    for index in count():
        path = folder / f"spool-{number:04d}-{index:05d}.bin"
        note = path.with_suffix(".json")
        if note.is_file():
            facts = json.loads(note.read_text(encoding="utf-8"))
        else:
            items = stream.read(state) if items is None else items
            facts = _write_segment(items, path)
            text = json.dumps(facts)
            write_atomically(note, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        yield path, facts
        state = facts["state"]
        if facts["last"]:
            return


def _write_segment(items: Iterator[tuple[Item, Any]], path: Path) -> dict[str, Any]:
    """Copy files until the segment is full or the stream ends."""
    temporary = path.with_suffix(".tmp")
    rows, refused = [], []
    offset = 0
    last, get_state = True, None
    with open(temporary, "wb") as file:
        for item, state_after in items:
            get_state = state_after
            if item.content is None:
                refused.append((item.name, item.reason))
            else:
                file.write(item.content)
                rows.append((item.key, item.speaker, item.name, offset, len(item.content)))
                offset += len(item.content)
            if offset >= SEGMENT_BYTES or len(rows) + len(refused) >= SEGMENT_ITEMS:
                last = False
                break
    state = None if last or get_state is None else get_state()
    publish(temporary, path)
    return {"rows": rows, "refused": refused, "state": state, "last": last}
