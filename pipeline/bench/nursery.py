"""A process that has imported torch and the model's code, and forks one child for each launch.

Importing them takes most of a launch's time (6 s of CPU for MiniLM on two shared cores) and says
nothing about speed. The nursery has imported and nothing more: it never computes, so it has no
thread pools, and every child has heap, threads, models and order of creation of its own. What
children do share is where libraries are mapped; each begins with a gap of random size in its
address space, so that weights do not fall on the same addresses (docs/decisions/0004).

Started as `python -m pipeline.bench.nursery CHECKPOINT`; reads `JOB RECORD LOG` paths, a JSON list
a line, and answers each with the child's exit status, as waitpid gives it.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import sys
import traceback
from pathlib import Path
from random import Random
from typing import Final

from pipeline.bench.contenders import import_torch_model
from pipeline.bench.job import LaunchJob
from pipeline.bench.launch import run_launch
from pipeline.errors import PipelineError

LARGEST_GAP_PAGES: Final = 4096
"""16 MiB: larger than any cache's reach over virtual addresses, small beside a model."""


def main(arguments: list[str]) -> None:
    """Import, then fork one child for each line until the input ends."""
    import_torch_model(Path(arguments[0]))
    # Children then write to fewer shared pages: a collection would touch every object.
    gc.freeze()
    print("ready", flush=True)  # noqa: T201 - the protocol with the launcher
    for line in sys.stdin:
        job_path, record_path, log_path = map(Path, json.loads(line))
        child = os.fork()
        if child == 0:
            os._exit(_run_child(job_path, record_path, log_path))
        _, status = os.waitpid(child, 0)
        print(status, flush=True)  # noqa: T201


def _run_child(job_path: Path, record_path: Path, log_path: Path) -> int:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(log_path.parent)
    try:
        job = LaunchJob.model_validate_json(job_path.read_bytes())
        pages = Random(job.seed).randrange(1, LARGEST_GAP_PAGES)  # noqa: S311 - not a secret
        gap = mmap.mmap(-1, pages * mmap.PAGESIZE)
        record_path.write_text(run_launch(job).model_dump_json(), encoding="utf-8")
        gap.close()
    except PipelineError as err:
        print(err, file=sys.stderr, flush=True)  # noqa: T201 - the log that the launcher shows
        return 1
    except BaseException:  # noqa: BLE001 - the launcher reads the log; nothing may escape a fork
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
