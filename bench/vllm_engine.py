"""motet's vLLM engine against vLLM alone, and what loading and sleeping cost. One call, one table, JSON with --out.

    python bench/vllm_engine.py --out vllm.json                    on a GPU: 0.6B Qwen3 shape, random weights
    python bench/vllm_engine.py --shape tiny --tokens 16 --batches 8 --sections alone engine files    a dry run on a CPU

Each section is a process of its own with the same vLLM settings, one after the other. "alone" is `LLM.generate` without
log-probabilities and seeds, which is what vLLM does fastest; "engine" is motet's engine with both, on the same prompts
and lengths, and in turns with it `LLM.generate` of the same vLLM: a process and a minute apart, the same work on the
same machine differs by a tenth and more. A load is timed from the learner's tensors until the fingerprints have been
compared.

"step_ms" is where the time of a step goes in this process, by timers in one pass of its own: `schedule` and `launch`
are vLLM's before the device works, `wait` is for the device, `outputs` is all that is done with what it sampled (by
vLLM's scheduler, its output processor, and motet). Where `wait` is near zero, the host is the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import capped
import random_model
import torch

PROMPT = 128
CUDA = torch.cuda.is_available()
MEMORY_SHARE = 0.4


def main() -> int:
    parser = argparse.ArgumentParser(description="motet's vLLM engine against vLLM alone.")
    parser.add_argument("--shape", choices=sorted(random_model.SHAPES), default="0.6B")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=["alone", "engine"],
                        help="ipc, files: a server of its own, and how weights reach it")  # fmt: skip
    parser.add_argument("--python", default=sys.executable, help="the server's Python")
    parser.add_argument("--model", type=Path, help="where the random model lies or is written")
    parser.add_argument("--out", type=Path)
    capped.add(parser)
    parser.add_argument("--section", help=argparse.SUPPRESS)
    options = parser.parse_args()
    held = capped.note(options.cap)
    if options.section:
        options.out.write_text(json.dumps(SECTIONS[options.section](options)) + "\n")
        return 0
    folder = options.model or Path(tempfile.mkdtemp(prefix="motet-bench-")) / "model"
    write = [sys.executable, str(Path(__file__).parent / "random_model.py"), str(folder), options.shape]
    subprocess.run(write, check=True)  # this process takes no memory of the device
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if CUDA else "cpu", "shape": options.shape, **held}
    for section in options.sections:
        began = time.perf_counter()
        with tempfile.NamedTemporaryFile(suffix=".json") as answer:
            command = [sys.executable, *sys.argv, "--section", section, "--model", str(folder), "--out", answer.name]
            status = subprocess.run(command).returncode
            text = Path(answer.name).read_text()
        result[section] = json.loads(text) if status == 0 and text else {"failed": status}
        result[section]["seconds"] = round(time.perf_counter() - began, 1)
        if options.out:  # whatever comes after, this is kept
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result, options.batches)
    return 0 if all("failed" not in result[s] for s in result if isinstance(result[s], dict)) else 1


def show(result: dict[str, Any], batches: list[int]) -> None:
    print(f"\n{result['device']}, {result['shape']}")
    for batch in batches:
        alone = result.get("alone", {}).get(f"tokens_per_second/{batch}", float("nan"))
        for section in ("alone", "engine", "ipc", "files"):
            speed = result.get(section, {}).get(f"tokens_per_second/{batch}")
            if speed:
                print(f"batch {batch:4d}  {section:<7} {speed:10.0f} tok/s  {speed / alone:6.1%} of vLLM alone")
        if share := result.get("engine", {}).get(f"share_of_alone/{batch}"):
            print(f"batch {batch:4d}  engine in turns with the same vLLM alone: {share:6.1%}")
    for section in ("alone", "engine", "ipc", "files"):
        for name, value in result.get(section, {}).items():
            if not name.startswith("tokens_per_second"):
                print(f"{section:<7} {name:<34} {value}")


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median and smallest seconds."""
    seconds = []
    for _ in range(repeats):
        sync()
        began = time.perf_counter()
        work()
        sync()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), min(seconds)


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def free_gib() -> float:
    sync()
    return torch.cuda.mem_get_info()[0] / 2**30 if CUDA else 0.0


def step_ms(engine: Any, work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds a step of vLLM's engine in this process; the timers themselves take about 0.01."""
    core, spent, steps = engine.engine_core.engine_core, dict.fromkeys(("schedule", "launch", "wait"), 0.0), [0]

    def timer(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            done = method(*given, **named)
            spent[part] += time.perf_counter() - began
            steps[0] += part == "schedule"
            if part == "launch" and hasattr(done, "result"):  # what the device has not told yet
                done.result = timer("wait", done.result)
            return done

        return timed

    wrapped = [(core.scheduler, "schedule", "schedule"), (core.model_executor, "execute_model", "launch"),
               (core.model_executor, "sample_tokens", "launch")]  # fmt: skip
    for owner, name, part in wrapped:
        setattr(owner, name, timer(part, getattr(owner, name)))
    sync()
    began = time.perf_counter()
    work()
    sync()
    whole = time.perf_counter() - began
    for owner, name, _ in wrapped:
        delattr(owner, name)
    parts = {"all": whole, **spent, "outputs": whole - sum(spent.values())}
    return {part: round(1000 * seconds / steps[0], 3) for part, seconds in parts.items()}


def alone(options: argparse.Namespace) -> dict[str, Any]:
    from motet.engine import vllm_local

    vllm_local.prepare_process()
    from vllm import LLM

    llm = LLM(
        model=str(options.model), dtype="bfloat16" if CUDA else "float32", skip_tokenizer_init=True,
        max_num_seqs=max(options.batches), gpu_memory_utilization=MEMORY_SHARE * capped.share(), enforce_eager=not CUDA,
        max_model_len=PROMPT + options.tokens,
    )  # fmt: skip
    found: dict[str, Any] = {}
    for batch in options.batches:
        work = plainly(llm, options, batch)
        work()
        median, _ = timed(work, options.repeats)
        found[f"tokens_per_second/{batch}"] = batch * options.tokens / median
        found[f"step_ms/{batch}"] = step_ms(llm.llm_engine, work)
    return found


def plainly(llm: Any, options: argparse.Namespace, batch: int) -> Callable[[], Any]:
    """vLLM as it samples fastest: nobody's log-probabilities, nobody's seed."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=1.0, max_tokens=options.tokens, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts_of(options, batch)]
    return lambda: llm.generate(asked, parameters, use_tqdm=False)


def prompts_of(options: argparse.Namespace, batch: int) -> list[list[int]]:
    return random_model.prompts(batch, PROMPT, random_model.SHAPES[options.shape]["vocab_size"], copies=8)


def engine(options: argparse.Namespace) -> dict[str, Any]:
    return measure(options, **({"sleep": 2} if CUDA else {}))


def ipc(options: argparse.Namespace) -> dict[str, Any]:
    return measure(options, python=options.python, transfer="ipc")


def files(options: argparse.Namespace) -> dict[str, Any]:
    return measure(options, python=options.python, transfer="files")


def measure(options: argparse.Namespace, **way: Any) -> dict[str, Any]:
    from motet.base.recipe import Chat, Engine, Model, Optimizer
    from motet.data.chat import ChatFormat
    from motet.engine import vllm
    from motet.engine.protocol import Request, SamplingParams
    from motet.model.load import load_tokenizer
    from motet.train.learner import Learner

    if way.get("transfer") == "ipc" and find_spec("ray") is None:
        # vLLM 0.22's module of this transfer imports ray at its top, and uses it only with another transport
        stub = Path(tempfile.mkdtemp())
        (stub / "ray.py").write_text("")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(stub), os.environ.get("PYTHONPATH", "")])
    model = Model(path=str(options.model), dtype="bfloat16" if CUDA else "float32")
    chat = ChatFormat(load_tokenizer(options.model), Chat(think="off"))
    settings = Engine(
        kind="vllm", batch_size=max(options.batches), memory_share=MEMORY_SHARE * capped.share(), eager=not CUDA,
        context=PROMPT + options.tokens, **way,
    )  # fmt: skip
    began = time.perf_counter()
    made: Any = vllm.make(options.model, model, chat, settings)
    found: dict[str, Any] = {"start_seconds": round(time.perf_counter() - began, 1)}
    sampling = SamplingParams(1.0, 1.0, options.tokens)
    for batch in options.batches:
        asked = [Request(tuple(prompt), (), i) for i, prompt in enumerate(prompts_of(options, batch))]
        answers = dict(made.generate(asked, sampling))
        made._wake()
        count = sum(len(c.tokens) for c in answers.values())
        own, alone = [], []
        for _ in range(options.repeats):
            own.append(count / timed(lambda asked=asked: dict(made._sample(asked, sampling)), 1)[0])  # type: ignore[misc]
            if "python" not in way:  # the same vLLM without motet around it, in turns: a machine's moods meet both
                alone.append(batch * options.tokens / timed(plainly(made._llm, options, batch), 1)[0])
        found[f"tokens_per_second/{batch}"] = statistics.median(own)
        if alone:
            found[f"alone_in_turns/{batch}"] = statistics.median(alone)
            shares = [a / b for a, b in zip(own, alone, strict=True)]
            found[f"share_of_alone/{batch}"] = statistics.median(shares)
            found[f"pairs/{batch}"] = [
                [round(a), round(b), round(c, 3)] for a, b, c in zip(own, alone, shares, strict=True)
            ]
            found[f"step_ms/{batch}"] = step_ms(made._engine, lambda asked=asked: dict(made._sample(asked, sampling)))  # type: ignore[misc]
    learner = Learner(options.model, model, Optimizer(), 1)
    found |= loads(made, learner, options.repeats)
    found |= difference(made, learner, asked[:64], sampling)
    if settings.sleep:
        found |= sleeping(made, learner)
    made.close()
    return found


def loads(made: Any, learner: Any, repeats: int) -> dict[str, Any]:
    made.load(learner.weights(), 1)
    median, best = timed(lambda: made.load(learner.weights(), 2), repeats + 2)
    shapes = {name: tuple(tensor.shape) for name, tensor in learner.weights()}
    held, _ = timed(lambda: made._fingerprints(shapes), repeats)
    return {
        "load_seconds": round(median, 4),
        "load_seconds_best": round(best, 4),
        "of_which_engine_fingerprints": round(held, 4),
        "tensors_proven": f"{len(made._fingerprints(shapes)[0])} of {len(shapes)}",
    }


def difference(made: Any, learner: Any, asked: Any, sampling: Any) -> dict[str, Any]:
    """Of log-probabilities of sampled tokens, engine and learner, under the same weights."""
    from motet.data.pack import Sample, pack

    answers = dict(made.generate(asked, sampling))
    samples = [
        Sample(r.prompt_tokens + answers[i].tokens, (False,) * len(r.prompt_tokens) + (True,) * len(answers[i].tokens),
               logprobs=answers[i].logprobs) for i, r in enumerate(asked)
    ]  # fmt: skip
    batches = pack(samples, 16384, learner.device)
    apart = torch.cat([(b.behaviour_N - own).abs() for b, own in zip(batches, learner.logprobs(batches), strict=True)])
    return {
        "logprob_difference_mean": float(f"{float(apart.mean()):.3g}"),
        "logprob_difference_p99": float(f"{float(apart.float().quantile(0.99)):.3g}"),
        "logprob_difference_max": float(f"{float(apart.max()):.3g}"),
    }


def sleeping(made: Any, learner: Any) -> dict[str, Any]:
    """Both levels: seconds and GiB."""
    found: dict[str, Any] = {}
    made.load(learner.weights(), 3)
    made._wake()
    for level in (1, 2):
        awake = free_gib()
        down, _ = timed(lambda level=level: made._to_sleep(level), 1)  # type: ignore[misc]
        found[f"sleep_{level}_seconds"] = round(down, 3)
        found[f"sleep_{level}_gib_given_back"] = round(free_gib() - awake, 2)
        up, _ = timed(lambda: made._rouse("weights"), 1)
        reload, _ = timed(lambda level=level: made._put(learner.weights()) if level == 2 else None, 1)  # type: ignore[misc]
        cache, _ = timed(lambda: made._rouse("kv_cache"), 1)
        found[f"wake_{level}_seconds"] = round(up + cache, 3)
        if level == 2:
            found["wake_2_weights_again_seconds"] = round(reload, 3)
    return found


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "alone": alone, "engine": engine, "ipc": ipc, "files": files,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
