"""Steps of datatrove that prepare and embed corpora on many machines. They need the extra `datatrove`."""

from .datatrove_steps import EmbedShare, FinishEmbeddings, FinishShards, MakeShards, PlanShards

__all__ = ["EmbedShare", "FinishEmbeddings", "FinishShards", "MakeShards", "PlanShards"]
