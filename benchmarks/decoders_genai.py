"""ONNX Runtime GenAI as a worker: a line in, one generation, a line of times out. Run by `decoders.py`.

    python decoders_genai.py MODEL PROMPT_TOKENS NEW_TOKENS VOCABULARY THREADS

Runs in an environment that has `onnxruntime-genai` and nothing of ours. Every line on standard input is
a seed; the answer is JSON: seconds of each new token, the first of them with the prompt. With one thread
they are the processor's, else the clock's; 0 threads leaves their number to GenAI.
"""

from __future__ import annotations

import json
import random
import sys
import time

import onnxruntime_genai


def main() -> int:
    """Load once, then serve."""
    folder, prompt, new, vocabulary, threads = sys.argv[1], *map(int, sys.argv[2:6])
    config = onnxruntime_genai.Config(folder)
    if threads:
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    clock = time.process_time if threads == 1 else time.perf_counter
    model = onnxruntime_genai.Model(config)
    print(json.dumps({"version": onnxruntime_genai.__version__}), flush=True)
    for line in sys.stdin:
        generator = random.Random(int(line))  # noqa: S311 - no secret
        tokens = [generator.randrange(2, vocabulary) for _ in range(prompt)]
        parameters = onnxruntime_genai.GeneratorParams(model)
        length = prompt + new
        parameters.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=1
        )
        run = onnxruntime_genai.Generator(model, parameters)
        seconds, started = [], clock()
        run.append_tokens([tokens])
        for _ in range(new):
            run.generate_next_token()
            now = clock()
            seconds.append(now - started)
            started = now
        made = run.get_sequence(0)
        print(json.dumps({"seconds": seconds, "tokens": [int(each) for each in made[prompt:]]}))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
