"""Pipeline steps of datatrove. Its executors run them on one machine, a Slurm or Ray cluster, or Hugging Face Jobs.

To prepare a corpus, run `PlanShards` with one task, then `MakeShards` with any number of tasks, then `FinishShards`
with one task. To embed a corpus, run `EmbedShare` with any number of tasks, then `FinishEmbeddings` with one task. Each
step must have ended in all ranks before the next step begins. Therefore give each step its own executor, and set the
order with the argument `depends` of the executors.
"""

from collections.abc import Sequence
from typing import Any

from ..embedding.finding import find_source
from ..embedding.sharing import embed_share, finish_embeddings
from ..embedding.sources import Source
from ..loading.models import load_model
from ..modeling_hamspk import HamSpkModel
from ..shards.planning import PrepareOptions
from ..shards.preparing import finish_shards, make_shards, plan_shards

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError(
        "The steps for many machines need the package datatrove: pip install 'hf_hamspk[datatrove]'"
    ) from error


class _Step(PipelineStep):
    """Step that first yields the documents of earlier steps, if there are any, and then does its own work."""

    type = "hf_hamspk"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Yield the documents of `data`, and then do the work of one rank."""
        if data:
            yield from data
        with self.track_time("task"):
            self.work(rank, world_size)

    def work(self, rank: int, world_size: int) -> None:
        """Do the work of one rank."""
        raise NotImplementedError


class PlanShards(_Step):
    """Plan the shards of a corpus. Run this step with `tasks=1`. For the arguments, see `shards.plan_shards`."""

    name = "plan shards"

    def __init__(
        self, sources: Sequence[str], output: str, options: PrepareOptions | None = None, restart: bool = False
    ):
        super().__init__()
        self.sources, self.output, self.options, self.restart = list(sources), output, options, restart

    def work(self, rank: int, world_size: int) -> None:
        shards = plan_shards(self.sources, self.output, self.options, progress=False, restart=self.restart)
        self.stat_update("planned shards", value=shards, unit="task")


class MakeShards(_Step):
    """Make the planned shards of one rank (see `shards.make_shards`). Run this step with any number of tasks.

    A task uses one core, because the processes of an executor cannot start worker processes. To use more cores, run
    more tasks.

    Args:
        output: folder for the shards. It must contain a plan.
    """

    name = "make shards"

    def __init__(self, output: str):
        super().__init__()
        self.output = output

    def work(self, rank: int, world_size: int) -> None:
        made = make_shards(self.output, rank, world_size, progress=False)
        self.stat_update("made shards", value=made, unit="task")


class FinishShards(_Step):
    """Write the manifest of the shards after all ranks have ended. Run this step with `tasks=1`."""

    name = "finish shards"

    def __init__(self, output: str):
        super().__init__()
        self.output = output

    def work(self, rank: int, world_size: int) -> None:
        manifest = finish_shards(self.output)
        self.stat_update("utterances", value=manifest.utterances, unit="task")


class EmbedShare(_Step):
    """Embed the part of a corpus that belongs to one rank. Run this step with any number of tasks.

    Args:
        model: folder of a model, or its name on the Hub.
        files: audio files and folders, one list of recordings, or one folder of shards; see `embedding.finding`.
        output: file for the embeddings, in a folder that all machines share.
        precision: "float32" or "bfloat16".
        device: torch device; None uses a GPU if one is available, and the CPU otherwise.
        finding: further arguments of `embedding.finding.find_source`.
        options: further arguments of `embedding.extract`, such as `{"batch_seconds": 60.0}`.
    """

    name = "embed a share"

    def __init__(
        self,
        model: str,
        files: Sequence[str],
        output: str,
        precision: str = "float32",
        device: str | None = None,
        finding: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.model, self.files, self.output, self.precision, self.device = model, list(files), output, precision, device
        self.finding = {} if finding is None else finding
        self.options = {} if options is None else options

    def open(self) -> tuple[HamSpkModel, Source]:
        """Load the model, and open the source of the utterances."""
        found = find_source(self.files, **self.finding)
        model = load_model(self.model, self.device)
        return model, found.open(model.config.sampling_rate)

    def work(self, rank: int, world_size: int) -> None:
        share = (self.output, rank, world_size, self.precision)
        speed = embed_share(*self.open(), *share, progress=False, **self.options)
        self.stat_update("utterances", value=speed.utterances, unit="task")
        self.stat_update("seconds of audio", value=round(speed.audio_seconds), unit="task")


class FinishEmbeddings(EmbedShare):
    """Write the file of embeddings after all ranks have ended. Run this step with `tasks=1`.

    The arguments are those of `EmbedShare`. The statistics of the step contain the number of skipped utterances.
    """

    name = "finish embeddings"

    def work(self, rank: int, world_size: int) -> None:
        name = self.model.rstrip("/").rsplit("/", 1)[-1]
        count, failures = finish_embeddings(*self.open(), self.output, self.precision, name)
        self.stat_update("embeddings", value=count, unit="task")
        self.stat_update("skipped", value=len(failures), unit="task")
