"""ONNX Runtime against PyTorch: difference of the embeddings, size on disk, and time, on the same waveforms.

Run `python tests/benchmarks/benchmark_onnx.py`; `--channels 1024` for the ECAPA-TDNN of the paper. The weights are
random, which changes neither time nor size. The two take turns; the median of the rounds counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rivals import write_json

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.encoders_hamspk import OnnxEncoder
from hf_hamspk.export.onnx_graph import export_onnx


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the ratios there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = HamSpkModel(HamSpkConfig(ecapa_channels=arguments.channels)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        began = time.perf_counter()
        exported = export_onnx(model, Path(folder) / "model.onnx")
        print(f"ECAPA-TDNN, C = {arguments.channels}; exported and checked in {time.perf_counter() - began:.0f} s")
        weights = (Path(folder) / "model.safetensors").stat().st_size
        sizes = f"{exported.size / 1e6:.1f} MB ONNX, {weights / 1e6:.1f} MB safetensors"
        print(f"size: {sizes}, {exported.size / weights:.2f} x")
        session = OnnxEncoder(exported.path, arguments.threads)
        rows = []
        print("seconds  batch  difference  torch ms  ONNX ms  torch / ONNX")
        for one in exported.agreements:
            values = 0.1 * torch.randn(one.batch, round(one.seconds * model.config.sampling_rate))
            times: dict[str, list[float]] = {"torch": [], "onnx": []}
            for _ in range(arguments.rounds + 1):
                for name, run in (("torch", model), ("onnx", session)):
                    began = time.perf_counter()
                    with torch.inference_mode():
                        run(values)
                    times[name].append(time.perf_counter() - began)
            slow, fast = (1e3 * statistics.median(times[name][1:]) for name in ("torch", "onnx"))
            print(
                f"{one.seconds:7g}  {one.batch:5d}  {one.difference:10.1e}  "
                f"{slow:8.0f}  {fast:7.0f}  {slow / fast:12.2f}"
            )
            what = f"ONNX Runtime, {one.batch} x {one.seconds:g} s"
            rows.append({"what": what, "rival": "PyTorch", "ratio": slow / fast})
    write_json(arguments.json, "onnx", {"rows": rows})


if __name__ == "__main__":
    main()
