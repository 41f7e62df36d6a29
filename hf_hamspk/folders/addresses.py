"""Addresses of databases of speakers, which commands accept instead of a folder of profiles."""

LANCE_ADDRESS, POSTGRES_ADDRESSES = "lancedb://", ("postgresql://", "postgres://")


def is_store(address: str) -> bool:
    """Return whether a text is the address of a database, not the path of a folder."""
    return address.startswith((LANCE_ADDRESS, *POSTGRES_ADDRESSES))
