"""ONNX Runtime GenAI as a worker: a line in, one generation, a line of times out. Run by `decoders.py`.

    python decoders_genai.py MODEL PROMPT_TOKENS NEW_TOKENS VOCABULARY

Runs in an environment that has `onnxruntime-genai` and nothing of ours. Every line on standard input is
a seed; the answer is JSON: seconds of each new token, the first of them with the prompt.
"""

from __future__ import annotations

import json
import random
import sys
import time

import onnxruntime_genai


def main() -> int:
    """Load once, then serve."""
    folder, prompt, new, vocabulary = sys.argv[1], *map(int, sys.argv[2:5])
    model = onnxruntime_genai.Model(folder)
    print(json.dumps({"version": onnxruntime_genai.__version__}), flush=True)
    for line in sys.stdin:
        generator = random.Random(int(line))
        tokens = [generator.randrange(2, vocabulary) for _ in range(prompt)]
        parameters = onnxruntime_genai.GeneratorParams(model)
        length = prompt + new
        parameters.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=1
        )
        run = onnxruntime_genai.Generator(model, parameters)
        seconds, started = [], time.perf_counter()
        run.append_tokens([tokens])
        for _ in range(new):
            run.generate_next_token()
            now = time.perf_counter()
            seconds.append(now - started)
            started = now
        made = run.get_sequence(0)
        print(json.dumps({"seconds": seconds, "tokens": [int(each) for each in made[prompt:]]}))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
