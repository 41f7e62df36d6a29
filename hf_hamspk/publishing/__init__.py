"""Publishing of a model on the Hub: choice of the files, model card, and upload."""

from .about import About, TrainingData, TrialList
from .card import render_card
from .contents import UploadPlan, plan_upload
from .facts import CardFacts, facts_of_recipe, gather_facts
from .push import push_to_hub

__all__ = [
    "About",
    "CardFacts",
    "TrainingData",
    "TrialList",
    "UploadPlan",
    "facts_of_recipe",
    "gather_facts",
    "plan_upload",
    "push_to_hub",
    "render_card",
]
