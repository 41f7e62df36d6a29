"""Addresses of databases of speakers, which commands accept instead of a folder of profiles."""

import re

LANCE_ADDRESS, POSTGRES_ADDRESSES = "lancedb://", ("postgresql://", "postgres://")
# Beginning of a text that was probably meant as the address of a database.
_LIKE_AN_ADDRESS = re.compile(r"(lancedb|postgres(ql)?):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_store(address: str) -> bool:
    """Return whether a text is the address of a database, not the path of a folder.

    Raises:
        ValueError: the text looks like an address of another kind. If it were used as a path, profiles would be written
            into a local folder of this name.
    """
    if address.startswith((LANCE_ADDRESS, *POSTGRES_ADDRESSES)):
        return True
    if _LIKE_AN_ADDRESS.match(address):
        raise ValueError(
            f"Expected a folder, {LANCE_ADDRESS}FOLDER or {POSTGRES_ADDRESSES[0]}USER@HOST/NAME, got {address!r}."
        )
    return False
