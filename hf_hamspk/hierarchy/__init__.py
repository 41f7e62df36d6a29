"""Measure how hierarchical the embeddings and centres of a model are, and which properties their radii depend on."""

from .analysis import HierarchySettings, analyse, measure_hierarchy
from .report import check_report_folder, write_hierarchy_report

__all__ = ["HierarchySettings", "analyse", "check_report_folder", "measure_hierarchy", "write_hierarchy_report"]
