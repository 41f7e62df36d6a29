"""Check heads and encoders on a GPU against the CPU, and measure memory and speed. `run.sh` calls this.

    python tests/gpu/measure.py [--reduced] [--output FOLDER] [--parts ...] [--limit SECONDS] [--wespeaker DIR]

The parts are, in this order:

- machine: device, versions, measured peak of matrix products and of memory bandwidth
- heads: each head over blocks of speakers and in its plain form, loss and gradients, against float32 on the CPU
- encoders: each encoder, embeddings and gradients, in float32, with TF32 and under bfloat16 autocast, against the CPU
- memory: a training step of HAM over a million speakers, beyond the centres and their gradient
- head speed: HAM against eager and compiled AM-Softmax, forward and backward
- training speed: utterances per second of encoders, their share of the matrix peak, and their memory traffic
- embedding speed: real-time factor of `extract` on files, with reading and decoding
- trainer: the trainer on files of noise; a resumed run against an uninterrupted one; share of time waiting for data

A part that the time limit leaves out is named in the table. The exit code is 1 if an error is above its bound. The
errors of bfloat16 and TF32 are bounded by the errors of bfloat16 on the CPU, for the same weights and recordings.
"""

import argparse
import contextlib
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from benchmark_head import eager_am, make_head
from benchmark_losses import TheirLoss
from rivals import forget_peak, memory_of, wespeaker_projections
from tiny_models import BACKBONES, attuned, noises, tiny_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.configuration_hamspk import ENCODERS
from hf_hamspk.geometry_hamspk import JointHead, SpeakerHead
from hf_hamspk.losses import use_blocks

HEADS = ("softmax", "scaled_softmax", "normalized_softmax", "am", "aam", "ram", "h", "ham", "joint")
PRECISIONS = ("float32", "TF32", "bfloat16")
# Largest relative error of values and of gradients (norm of the difference over the norm of the reference).
HEAD_BOUND = 1e-4
ENCODER_BOUNDS = (1e-4, 1e-3)
# Error of bfloat16 on the device, over the error of bfloat16 on the CPU. The error of TF32 may not be above the latter.
MOST_OF_CPU = 3.0
RESUME_BOUND = 1e-2
MEGABYTE = 1 << 20
RATE = 16_000


class Run:
    """One run: the device, the sizes, and the results so far."""

    def __init__(self, arguments: argparse.Namespace):
        self.reduced = arguments.reduced
        self.device = torch.device("cuda" if torch.cuda.is_available() and not arguments.reduced else "cpu")
        self.folder = Path(arguments.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.wespeaker = arguments.wespeaker
        self.began = time.monotonic()
        self.limit = arguments.limit
        self.results: dict[str, Any] = {}
        self.rows: list[tuple[str, str, str]] = []
        self.too_large: list[str] = []

    def size(self, full: int, reduced: int) -> int:
        """A size of this run."""
        return reduced if self.reduced else full

    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.began)

    def say(self, part: str, what: str, value: str) -> None:
        """Add a row to the table."""
        self.rows.append((part, what, value))
        print(f"{part:<17}{what:<64}{value}", flush=True)

    def bound(self, part: str, what: str, error: float, limit: float) -> None:
        """Add an error to the table, and mark it if it is above its bound."""
        mark = "" if error <= limit else f"  ABOVE {limit:g}"
        if mark:
            self.too_large.append(f"{part}: {what}: {error:.2g} > {limit:g}")
        self.say(part, what, f"{error:.1e}{mark}")

    def write(self) -> None:
        """Write the table and the JSON file."""
        lines = ["| part | what | result |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in self.rows)]
        (self.folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


def synchronise(run: Run) -> None:
    """Wait for the device."""
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Run, work: Callable[[], object], rounds: int, warm_up: int = 2) -> float:
    """Median seconds of `rounds` calls."""
    found = []
    for number in range(warm_up + rounds):
        synchronise(run)
        start = time.perf_counter()
        work()
        synchronise(run)
        if number >= warm_up:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions in one of `PRECISIONS`; bfloat16 by autocast."""
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if name == "TF32" else "ieee"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


# --- machine


def machine(run: Run) -> dict:
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": str(run.device)}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"name": properties.name, "gibibytes": round(properties.total_memory / 2**30, 1)}
        facts["cuda"] = str(torch.version.cuda)
    else:
        facts |= {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    run.say("machine", "device", f"{facts['name']}, torch {facts['torch']}{' (reduced)' if run.reduced else ''}")
    side = run.size(8192, 256)
    for name in PRECISIONS:
        kind = torch.bfloat16 if name == "bfloat16" else torch.float32
        a, b = (torch.randn(side, side, device=run.device, dtype=kind) for _ in range(2))
        with precision("TF32" if name == "TF32" else "float32", run.device):
            taken = seconds_of(run, lambda a=a, b=b: a @ b, 10)
        facts[f"{name} flops"] = 2 * side**3 / taken
        run.say("machine", f"matrix product of {side} in {name}", f"{2 * side**3 / taken / 1e12:.2f} TFLOP/s")
    source = torch.randn(run.size(2**28, 2**20), device=run.device)
    target = torch.empty_like(source)
    taken = seconds_of(run, lambda: target.copy_(source), 10)
    facts["bytes per second"] = 2 * source.numel() * 4 / taken
    run.say("machine", "copy of memory, read and written", f"{facts['bytes per second'] / 1e9:.1f} GB/s")
    return facts


# --- heads and encoders against the CPU


def build_head(name: str, speakers: int, size: int) -> SpeakerHead | JointHead:
    """A head of a model, with centres as large as in the middle of training."""
    torch.manual_seed(0)
    config = tiny_config(head=name, num_labels=speakers, embedding_size=size)
    head = HamSpkForXVector(config).head
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    return head


def head_step(head: torch.nn.Module, x: Tensor, y: Tensor, plain: bool) -> list[Tensor]:
    """Loss, gradient of the embeddings, gradients of the parameters."""
    x = x.detach().requires_grad_()
    loss = head.plain_loss(x, y) if plain and isinstance(head, SpeakerHead) else head(x, y, return_logits=False).loss
    parameters = [p for p in head.parameters() if p.requires_grad]
    return [loss, *torch.autograd.grad(loss, [x, *parameters])]


def heads(run: Run) -> dict:
    speakers, size, batch = run.size(5994, 50), 192 if not run.reduced else 24, run.size(256, 16)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, size, generator=generator)
    y = torch.randint(speakers, (batch,), generator=generator)
    found: dict[str, Any] = {}
    for name in HEADS:
        reference = build_head(name, speakers, size)
        expected = head_step(reference, x, y, plain=True)
        for form in ("blocks", "plain"):
            head = copy.deepcopy(reference).to(run.device)
            if form == "blocks":
                use_blocks(head)
            for setting in ("float32", "TF32", "bfloat16"):
                with precision(setting, run.device):
                    if form == "plain" and setting != "float32":
                        continue  # only the blocks promise full precision whatever is set
                    results = head_step(head, x.to(run.device), y.to(run.device), form == "plain")
                errors = [relative(a, b) for a, b in zip(results, expected, strict=True)]
                found[f"{name}, {form}, {setting}"] = errors
                run.bound("heads", f"{name}, {form}, {setting}: loss and gradients", max(errors), HEAD_BOUND)
    return found


def encoder_step(model: HamSpkModel, waves: Tensor, mask: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings, and the gradient of a weighted sum of them over all parameters, as one vector."""
    embeddings = model(waves, mask).embeddings.float()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad((embeddings * direction).sum(), parameters, allow_unused=True)
    return embeddings, torch.cat([g.float().flatten() for g in grads if g is not None])


def encoders(run: Run) -> dict:
    recordings = noises(*((1.0, 0.7) if run.reduced else (4.0, 3.1, 2.2, 4.0)))
    waves = torch.nn.utils.rnn.pad_sequence(recordings, True)
    lengths = torch.tensor([len(wave) for wave in recordings])
    mask = (torch.arange(waves.shape[1]) < lengths[:, None]).long()
    found: dict[str, Any] = {}
    for name in (*ENCODERS, *BACKBONES):
        torch.manual_seed(0)
        reference = attuned(HamSpkModel(tiny_config(name)))
        direction = torch.randn(len(waves), reference.config.embedding_size)
        expected = encoder_step(reference, waves, mask, direction)
        with precision("bfloat16", torch.device("cpu")):
            rounded = encoder_step(reference, waves, mask, direction)
        usual = [relative(a, b) for a, b in zip(rounded, expected, strict=True)]
        model = copy.deepcopy(reference).to(run.device)
        for setting in PRECISIONS:
            with precision(setting, run.device):
                result = encoder_step(model, *(t.to(run.device) for t in (waves, mask, direction)))
            errors = [relative(a, b) for a, b in zip(result, expected, strict=True)]
            found[f"{name}, {setting}"] = errors
            factor = {"float32": 0.0, "TF32": 1.0, "bfloat16": MOST_OF_CPU}[setting]
            limits = [max(exact, factor * error) for exact, error in zip(ENCODER_BOUNDS, usual, strict=True)]
            for what, error, limit in zip(("embeddings", "gradients"), errors, limits, strict=True):
                run.bound("encoders", f"{name}, {setting}: {what}", error, limit)
    return found


# --- memory and speed of the head


def step_memory(run: Run, speakers: int, batch: int, name: str) -> int:
    """Bytes of a step beyond the centres and their gradient."""
    head = make_head(name, speakers).to(run.device)
    x = torch.randn(batch, head.similarity.weight.shape[1], device=run.device)
    y = torch.randint(speakers, (batch,), device=run.device)

    def step() -> None:
        head.similarity.weight.grad = None
        head(x.detach().requires_grad_(), y, return_logits=False).loss.backward()

    step()
    head.similarity.weight.grad = None
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated()
    else:
        before = forget_peak()
        step()
        peak = memory_of("VmHWM")
    return peak - before - head.similarity.weight.numel() * 4


def memory(run: Run) -> dict:
    found = {}
    for speakers in (run.size(100_000, 1000), run.size(1_000_000, 5000)):
        taken = step_memory(run, speakers, 256, "ham")
        found[str(speakers)] = taken
        run.say(
            "memory", f"step of HAM, {speakers} speakers, batch 256", f"{taken / MEGABYTE:.0f} MiB beyond gradients"
        )
    return found


def head_speed(run: Run) -> dict:
    found: dict[str, Any] = {}
    # Reduced, compiling is left to a backend that needs no compiler.
    compiled = torch.compile(eager_am, dynamic=False, backend="eager" if run.reduced else "inductor")
    for speakers in (1211, 5994, 17_982, 100_000, 1_000_000) if not run.reduced else (500, 1211):
        batch = run.size(256, 16)
        am, ham = (make_head(name, speakers).to(run.device) for name in ("am", "ham"))
        x = torch.randn(batch, 192, device=run.device, requires_grad=True)
        y = torch.randint(speakers, (batch,), device=run.device)
        centres = am.similarity.weight
        plain = torch.compile(ham.plain_loss, dynamic=False, backend="eager" if run.reduced else "inductor")
        works: dict[str, Callable[[], Tensor]] = {
            "AM eager": lambda x=x, y=y, centres=centres: eager_am(x, centres, y),
            "HAM in blocks": lambda x=x, y=y, ham=ham: ham(x, y, return_logits=False).loss,
            "AM in blocks": lambda x=x, y=y, am=am: am(x, y, return_logits=False).loss,
        }
        if speakers <= 100_000:
            works["AM compiled"] = lambda x=x, y=y, centres=centres: compiled(x, centres, y)
            works["HAM compiled, plain"] = lambda x=x, y=y, plain=plain: plain(x, y)
        if run.wespeaker is not None and speakers <= 5994:
            theirs = TheirLoss(wespeaker_projections(Path(run.wespeaker)), speakers).to(run.device)
            works["HAM of WeSpeaker"] = lambda x=x, y=y, theirs=theirs: theirs(x, y)
        taken = {}
        for name, work in works.items():
            with contextlib.suppress(torch.OutOfMemoryError):
                taken[name] = seconds_of(run, lambda work=work: work().backward(), run.size(15, 2))
        base = taken["AM eager"]
        found[str(speakers)] = taken
        for name, value in taken.items():
            text = f"{1000 * value:.2f} ms, {value / base:.2f} x AM eager"
            run.say("head speed", f"{name}, {speakers} speakers, batch {batch}", text)
    return found


# --- speed of training and embedding


def speed_configs(run: Run) -> dict[str, HamSpkConfig]:
    """Encoders in their usual sizes; small ones in a reduced run."""
    if run.reduced:
        return {"ecapa, tiny": tiny_config(), "campplus, tiny": tiny_config("campplus")}
    return {
        "ecapa, C = 512": HamSpkConfig(ecapa_channels=512, num_labels=5994),
        "ecapa, C = 1024": HamSpkConfig(ecapa_channels=1024, num_labels=5994),
        "campplus": HamSpkConfig(backbone="campplus", num_labels=5994),
        "resnet, 34 layers": HamSpkConfig(backbone="resnet", resnet_depth=34, num_labels=5994),
    }


def training_speed(run: Run) -> dict:
    peaks = run.results.get("machine", {})
    found: dict[str, Any] = {}
    batch, samples = run.size(128, 4), run.size(2, 1) * RATE
    for name, config in speed_configs(run).items():
        for setting in PRECISIONS:
            if run.left() < 0.35 * run.limit and not run.reduced:
                run.say("training speed", f"{name}, {setting}", "left out: no time")
                continue
            torch.manual_seed(0)
            model = HamSpkForXVector(config).to(run.device).train()
            use_blocks(model.head)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=run.device.type == "cuda")
            waves = 0.05 * torch.randn(batch, samples, device=run.device)
            labels = torch.randint(int(config.num_labels), (batch,), device=run.device)

            def step(model=model, optimizer=optimizer, waves=waves, labels=labels, setting=setting) -> None:
                with precision(setting, run.device):
                    loss = model(waves, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            counter = FlopCounterMode(display=False)
            with counter:
                step()
            if run.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = seconds_of(run, step, run.size(8, 1), warm_up=run.size(3, 0))
            flops = counter.get_total_flops() / taken
            share = flops / peaks[f"{setting} flops"] if f"{setting} flops" in peaks else float("nan")
            memory_used = torch.cuda.max_memory_allocated() if run.device.type == "cuda" else 0
            found[f"{name}, {setting}"] = {"seconds": taken, "batch": batch, "flops": flops, "bytes": memory_used}
            # A step reads and writes the memory that it holds at least once: a floor of its time, not a measurement.
            floor = 2 * memory_used / peaks.get("bytes per second", float("inf")) / taken
            text = f"{batch / taken:.0f} utterances/s, {100 * share:.0f} % of the matrix peak"
            if memory_used:
                text += f", {memory_used / 2**30:.1f} GiB, one pass over it is {100 * floor:.0f} % of the step"
            run.say("training speed", f"{name}, {setting}, {batch} x {samples // RATE} s", text)
    return found


def embedding_speed(run: Run) -> dict:
    import soundfile

    from hf_hamspk.embedding import AudioFiles, EmbeddingParts, extract

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        names = []
        for number in range(run.size(600, 4)):
            length = int(draw.uniform(2, 23 if not run.reduced else 3) * RATE)
            names.append(f"{number:04d}.wav")
            soundfile.write(Path(folder) / names[-1], 0.05 * draw.standard_normal(length), RATE, subtype="PCM_16")
        for name, config in list(speed_configs(run).items())[: 4 if run.left() > 60 else 1]:
            for setting in ("float32", "bfloat16"):
                model = HamSpkModel(config).to(run.device).eval()
                source = AudioFiles(names, RATE, folder)
                if setting == "bfloat16":
                    torch.nn.Module.to(model, dtype=torch.bfloat16)
                parts = EmbeddingParts(
                    Path(folder) / f"{name}-{setting}.parts", source.sizes, config.embedding_size, {"name": name}
                )
                speed = extract(model, source, parts, workers=run.size(12, 1), progress=False)
                found[f"{name}, {setting}"] = speed.real_time_factor
                text = f"{1 / speed.real_time_factor:.0f} x real time (real-time factor {speed.real_time_factor:.5f})"
                run.say("embedding speed", f"{name}, {setting}, files of 2 to 23 s", text)
    return found


# --- the trainer


def train(folder: Path, corpus: Path, run: Run, epochs: int, **options: Any) -> Path:
    """Run the trainer, and return the output folder."""
    from hf_hamspk import Trainer

    recipe = {
        **{"train_data": str(corpus / "train.csv"), "audio_root": str(corpus), "output_dir": str(folder)},
        **{"epochs": epochs, "batch_size": run.size(64, 8), "crop_seconds": 2.0 if not run.reduced else 0.5},
        **{"ecapa_channels": run.size(512, 16), "ecapa_output_channels": run.size(1536, 48), "log_steps": 1},
        **{"embedding_size": run.size(192, 24), "learning_rate": 0.001, "lr_schedule": "constant", "average_last": 1},
        **{"check_audio": "none", "report_to": [], "cpu": run.device.type == "cpu", "warmup_epochs": 0},
        **{"num_workers": run.size(12, 0), "cache_megabytes": 1000},
        **options,
    }
    AcceleratorState._reset_state(True)  # a process of one run would not need it
    path = folder.with_suffix(".yaml")
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    Trainer.from_recipe(str(path)).train()
    return folder


def noise_corpus(folder: Path, speakers: int, utterances: int) -> Path:
    """Write files of noise, which cost no time to make, and their list `train.csv`."""
    import soundfile

    draw = np.random.default_rng(0)
    folder.mkdir()
    lines = ["path,speaker_id"]
    for number in range(speakers * utterances):
        samples = 0.05 * draw.standard_normal(int(draw.uniform(2.1, 3.0) * RATE))
        soundfile.write(folder / f"{number:05d}.flac", samples, RATE)
        lines.append(f"{number:05d}.flac,s{number % speakers}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


def trainer(run: Run) -> dict:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = noise_corpus(folder / "corpus", run.size(64, 4), run.size(20, 4))
        for setting in ("no", "bf16"):
            whole = train(folder / f"whole-{setting}", corpus, run, 2, mixed_precision=setting)
            train(folder / f"parts-{setting}", corpus, run, 1, mixed_precision=setting)
            parts = train(folder / f"parts-{setting}", corpus, run, 2, mixed_precision=setting)
            first, second = (load_file(one / "final" / "model.safetensors") for one in (whole, parts))
            pairs = [(first[key].flatten(), second[key].flatten()) for key in sorted(first) if first[key].ndim > 1]
            error = relative(torch.cat([b for _, b in pairs]), torch.cat([a for a, _ in pairs]))
            found[f"resumed, {setting}"] = error
            run.bound("trainer", f"resumed run against a whole one, precision {setting}", error, RESUME_BOUND)
            lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
            logged = [line for line in lines if "waiting_for_data" in line]
            logged = logged[len(logged) // 2 :]  # after the workers have started
            speed = statistics.median(line["utterances_per_second"] for line in logged)
            share = statistics.median(line["waiting_for_data"] for line in logged)
            found[f"speed, {setting}"] = {"utterances_per_second": speed, "waiting_for_data": share}
            text = f"{speed:.0f} utterances/s, {100 * share:.0f} % of the time waiting for data"
            run.say("trainer", f"files of a corpus, precision {setting}", text)
            if run.left() < 30 and not run.reduced:
                break
    return found


PARTS: dict[str, Callable[[Run], dict]] = {
    "machine": machine,
    "heads": heads,
    "encoders": encoders,
    "memory": memory,
    "head speed": head_speed,
    "training speed": training_speed,
    "embedding speed": embedding_speed,
    "trainer": trainer,
}


def main() -> int:
    """Run the parts, and return 1 if an error is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--output", default="gpu-results", help="folder for table.md and results.json")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--limit", type=float, default=290.0, help="seconds; a part starts only within this time")
    parser.add_argument("--wespeaker", help="checkout of WeSpeaker; its HyperbolicAMSoftmax is measured as well")
    arguments = parser.parse_args()
    run = Run(arguments)
    if run.device.type == "cpu" and not run.reduced:
        parser.error("no GPU was found: torch.cuda.is_available() is False. Use --reduced to try the script on the CPU")
    for name in arguments.parts:
        if run.left() <= 0:
            run.say(name, "", "left out: no time")
            continue
        start = time.monotonic()
        try:
            run.results[name] = PARTS[name](run)
        except Exception as error:  # the other parts still count on a machine that is lent for minutes
            run.too_large.append(f"{name}: {type(error).__name__}: {error}")
            run.say(name, "failed", " ".join(f"{type(error).__name__}: {error}".split())[:300])
        run.results.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
        run.write()
    for line in run.too_large:
        print(line)
    print(f"{run.folder / 'table.md'} and {run.folder / 'results.json'}, in {time.monotonic() - run.began:.0f} s")
    return 1 if run.too_large else 0


if __name__ == "__main__":
    raise SystemExit(main())
