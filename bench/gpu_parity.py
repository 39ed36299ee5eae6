"""How far engine and learner are apart on this machine's device, in float32 and in bfloat16, on the model of a run.

    python bench/gpu_parity.py runs/quickstart

Prints one table, on the last trained model of the run: the engine's log-probabilities against the learner's on
the same sampled tokens, and packed rows against one document at a time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from motet.base import jsonl
from motet.base.load_recipe import check
from motet.base.records import decode_problem
from motet.data.chat import ChatFormat
from motet.data.pack import Sample, pack
from motet.engine.protocol import Request, SamplingParams
from motet.engine.transformers import TransformersEngine
from motet.model.load import device_of, load_tokenizer
from motet.train.learner import Learner


def main(run: Path) -> None:
    recipe = check(jsonl.read_json(run / "resolved.json"), str(run))
    model = sorted(run.glob("*/model"), key=lambda p: p.stat().st_mtime)[-1]
    chat = ChatFormat(load_tokenizer(model), recipe.chat)
    groups = [row["problem"] for _, row in jsonl.read(model.parent / "evaluation.jsonl")][:128]
    problems = [decode_problem(row) for row in groups]
    requests = [Request(chat.prompt(p.messages), p.messages, i) for i, p in enumerate(problems)]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    columns = ("engine-learner mean", "max", "packed-single max", "tokens/s")
    print(f"{'device':<24} {'dtype':<9}" + "".join(f"{column:>21}" for column in columns))
    for dtype in ("float32", "bfloat16"):
        config = recipe.model.model_copy(update={"dtype": dtype})
        engine = TransformersEngine(model, config, chat, 128)
        learner = Learner(model, config, recipe.stage[recipe.stages[-1]].optimizer, 1)
        dict(engine.generate(requests, SamplingParams(1.0, 1.0, 8)))
        began = time.perf_counter()
        done = dict(engine.generate(requests, SamplingParams(1.0, 1.0, 64)))
        seconds = time.perf_counter() - began
        samples = [
            Sample(
                r.prompt_tokens + done[i].tokens,
                (False,) * len(r.prompt_tokens) + (True,) * len(done[i].tokens),
                logprobs=done[i].logprobs,
            )
            for i, r in enumerate(requests)
        ]
        packed = pack(samples, 16384, device_of(config))
        logprobs = learner.logprobs(packed)
        difference = torch.cat([(a - b.behaviour_N).abs() for a, b in zip(logprobs, packed, strict=True)])
        singles = {i: learner.logprobs(pack([s], 16384, device_of(config)))[0] for i, s in enumerate(samples)}
        alone = torch.cat([torch.cat([singles[i] for i in batch.order]) for batch in packed])
        apart = float((torch.cat(logprobs) - alone).abs().max())
        tokens = sum(len(c.tokens) for c in done.values())
        figures = (float(difference.mean()), float(difference.max()), apart, tokens / seconds)
        print(f"{name:<24} {dtype:<9}" + "".join(f"{figure:>21.3g}" for figure in figures))


if __name__ == "__main__":
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
