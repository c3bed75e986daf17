"""Whole models on a GPU, beside their roofline. Needs an NVIDIA GPU."""

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from tqdm import tqdm

from minstate.draft_budget import CostTable
from minstate.errors import BadValue
from minstate.lab.bench.configurations import CONFIGURATIONS
from minstate.lab.bench.kernels import measure_gpu
from minstate.lab.calibrate import calibrate
from minstate.lab.machines.data_sheets import LLAMA_8B
from minstate.lab.machines.roofline import Roofline
from minstate.lab.paths import TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence
from minstate.speculation import Speculation
from minstate.weights import load_model

CONTEXT = 4096  # tokens of each sequence


def random_model(config: ModelConfig, dtype: torch.dtype) -> Model:
    """A model with random weights, as fast as any model of its shape."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = config.tensor_shapes().items()
    tensors = {name: torch.randn(shape, generator=draw, device="cuda", dtype=dtype) * 0.02 for name, shape in shapes}
    return Model(config, tensors)


def step_ms(run: Callable[[], object], repeats: int = 30) -> float:
    """Median milliseconds of a step, from the host's call to the end of the GPU's work."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def decode(name: str, model: Model, bound: Roofline) -> list[dict]:
    """Decode steps, and forward passes that verify 8 tokens, with CUDA graphs and without."""
    from minstate.gpu import GpuRunner, Shape, gpu_kernels, input_views, pack_inputs
    from minstate.kernel_layers import hidden_states

    config, rows = model.config, []
    for batch_size in (1, 8, 32):
        pool = KVPool(
            num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            num_pages=batch_size * (CONTEXT // 16 + 1), page_size=16, dtype=model.dtype, device="cuda",
        )  # fmt: skip
        pool.kv.normal_()
        runner = GpuRunner(model, pool)
        for queries in (1, 8):
            sequences = [Sequence(pool) for _ in range(batch_size)]
            for sequence in sequences:
                sequence.log += [7] * CONTEXT
                sequence.table.append(CONTEXT - queries)
                sequence.table.commit()
            batch = RaggedBatch.build([sequence.chunk(queries) for sequence in sequences])
            shape = Shape.of(batch, model, runner.multiprocessors)
            inputs = input_views(pack_inputs(batch, shape, runner.pages).cuda(), shape, runner.pages)

            def eagerly(inputs=inputs, shape=shape, runner=runner, pool=pool):
                return runner.model.lm_head(hidden_states(runner.model, pool, inputs, gpu_kernels(shape)))

            tokens = batch_size * queries
            flops = batch_size * config.flops(queries, CONTEXT, logit_rows=queries)
            floor = 1000 * bound.floor_s(flops, config.bytes_read(batch_size * CONTEXT, model.dtype))
            graph = step_ms(lambda runner=runner, batch=batch: runner.logits(batch))
            eager = step_ms(eagerly)
            rows.append(
                {"what": f"decode, {name}", "sequences": batch_size, "tokens": tokens, "floor ms": floor,
                 "graph ms": graph, "eager ms": eager, "share of floor": floor / graph}
            )  # fmt: skip
            for sequence in sequences:
                sequence.table.truncate(0)
    return rows


def workflow(trace: str, model: Model, tokenizer, eos_ids: list[int], costs: CostTable) -> list[dict]:
    """Seconds of a trace's turns, replayed in each configuration."""
    rows = []
    for name, (kind, speculates) in CONFIGURATIONS.items():
        speculation = Speculation(costs) if speculates else False
        engine = kind(model, tokenizer, eos_ids=eos_ids, speculation=speculation)
        for repeat in range(2):  # the first captures graphs and compiles
            turns = [turn for _, turn in replay(engine, read_trace(TRACES / f"{trace}-0.jsonl"),
                                                tenant=f"repeat {repeat}")]  # fmt: skip
        seconds = [turn.stats.total_s for turn in turns]
        rows.append(
            {"what": f"{trace}, {name}", "turns": len(turns), "total s": sum(seconds),
             "median turn s": statistics.median(seconds), "forwarded": sum(turn.stats.forwarded for turn in turns)}
        )  # fmt: skip
    return rows


def gpu(dtype: str = "bfloat16", workload: str = "all") -> pd.DataFrame:
    """Decode steps of two models, and two traces in four configurations; or one `workload`: decode, traces or 8B.

    Raises `BadValue` if there is no GPU, and for an unknown workload.
    """
    if not torch.cuda.is_available():
        raise BadValue("this benchmark runs whole models on a GPU and needs an NVIDIA one that torch can use")
    if workload not in ("all", "decode", "traces", "8B"):
        raise BadValue(f"workload must be all, decode, traces or 8B, not {workload}")
    precision = getattr(torch, dtype)
    bound, rows = measure_gpu(precision), []
    about = {"gpu": torch.cuda.get_device_name(), "copy GB/s": round(bound.bytes_per_s / 1e9)}
    if workload != "8B":
        model, tokenizer, eos_ids = load_model(None, dtype, "cuda")
        if workload != "traces":
            rows += decode("default model", model, bound)
        if workload != "decode":
            costs = calibrate(dtype, device="cuda")
            about["ms of a pass"] = {"tokens": costs.tokens, "contexts": costs.contexts, "ms": costs.ms}
            for trace in tqdm(("agentic", "coding"), unit="trace"):
                rows += workflow(trace, model, tokenizer, eos_ids, costs)
        del model
        gc.collect()  # engines and their caches refer to each other
        torch.cuda.empty_cache()
    if workload in ("all", "8B"):
        rows += decode("8B, random weights", random_model(replace(LLAMA_8B, max_positions=8192), precision), bound)
    table = pd.DataFrame(rows).set_index("what")
    table.attrs = about
    return table
