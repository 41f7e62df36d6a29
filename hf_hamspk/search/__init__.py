"""Exact and approximate search for the nearest of many (up to millions of) enrolled speakers."""

from .index import SearchResult, SpeakerIndex

__all__ = ["SearchResult", "SpeakerIndex"]
