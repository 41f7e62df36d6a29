"""Exact and approximate search for the nearest of many enrolled speakers, in memory or in a database."""

from .index import SearchResult, SpeakerIndex
from .stores import SpeakerStore, StoredSpeakers

__all__ = ["SearchResult", "SpeakerIndex", "SpeakerStore", "StoredSpeakers"]
