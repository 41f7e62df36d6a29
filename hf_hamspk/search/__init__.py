"""Search over many enrolled speakers: the nearest of a million, exact or approximate."""

from .index import SearchResult, SpeakerIndex

__all__ = ["SearchResult", "SpeakerIndex"]
