"""Conversion of checkpoints from other projects to models of this package."""

from .building import Converted
from .official import convert_official_state_dict
from .segmentation import convert_segmentation
from .sources import SOURCES, convert, detect, stated_licence

__all__ = [
    "SOURCES",
    "Converted",
    "convert",
    "convert_official_state_dict",
    "convert_segmentation",
    "detect",
    "stated_licence",
]
