"""The steps of datatrove, with its executors for one machine and for Ray: the bytes of one process."""

from pathlib import Path

import pytest
import torch
from many_ranks import RATE, contents, tiny
from tiny_models import save_model

from hf_hamspk.embedding import embed_share, finish_embeddings, parts
from hf_hamspk.embedding.finding import find_source
from hf_hamspk.loading.models import load_model
from hf_hamspk.shards import PrepareOptions, prepare

pytestmark = pytest.mark.slow
pytest.importorskip("datatrove", reason="the extra `datatrove` is not installed")

from hf_hamspk.clusters import EmbedShare, FinishEmbeddings, FinishShards, MakeShards, PlanShards  # noqa: E402

SHARDS = PrepareOptions(shards=6)
TASKS = 2


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """Recordings in `wav`, a model, and the shards and embeddings of one process in `one` and `one.parquet`."""
    root = tmp_path_factory.mktemp("expected")
    tiny(root / "wav", 300)
    prepare([root / "wav"], root / "one", SHARDS, progress=False)
    model = load_model(save_model(root / "model"), "cpu")
    source = find_source([str(root / "wav")]).open(RATE)
    embed_share(model, source, root / "one.parquet", 0, 1, progress=False)
    finish_embeddings(model, source, root / "one.parquet", name="model")
    assert -(-300 // parts.PART_UTTERANCES) == TASKS + 1
    return root


def run_steps(executor, expected: Path, tmp_path: Path, **settings) -> None:
    """Prepare and embed with an executor, a job for each step, and compare."""

    def job(step, depends=None, tasks=1, workers=1):
        logs = str(tmp_path / "logs" / type(step).__name__)
        return executor([step], tasks=tasks, workers=workers, logging_dir=logs, depends=depends, **settings)

    out = str(tmp_path / "shards")
    plan = job(PlanShards([str(expected / "wav")], out, SHARDS))
    job(FinishShards(out), job(MakeShards(out), plan, TASKS, 2)).run()
    assert contents(tmp_path / "shards") == contents(expected / "one")
    words = (str(expected / "model"), [str(expected / "wav")], str(tmp_path / "e.parquet"), "float32", "cpu")
    job(FinishEmbeddings(*words), job(EmbedShare(*words), tasks=TASKS)).run()
    assert (tmp_path / "e.parquet").read_bytes() == (expected / "one.parquet").read_bytes()


def test_the_local_executor(expected, tmp_path):
    from datatrove.executor import LocalPipelineExecutor

    threads = torch.get_num_threads()
    run_steps(LocalPipelineExecutor, expected, tmp_path)
    assert torch.get_num_threads() == threads


def test_the_executor_of_ray(expected, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from datatrove.executor import RayPipelineExecutor

    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    try:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    except Exception as error:  # Ray gives its own processes seconds to start, whatever else the machine does
        ray.shutdown()
        pytest.skip(f"Ray does not start on this machine: {error}")
    try:
        run_steps(RayPipelineExecutor, expected, tmp_path, mem_per_cpu_gb=0.25)
    finally:
        ray.shutdown()
