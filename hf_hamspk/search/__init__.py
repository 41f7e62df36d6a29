"""Search over many enrolled speakers: the nearest of a million, exactly or approximately."""

from .index import SearchResult, SpeakerIndex

__all__ = ["SearchResult", "SpeakerIndex"]
