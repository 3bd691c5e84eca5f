"""The command line behind `scripts/train_fixtures`."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import click

from pipeline.environment import cores
from pipeline.errors import PipelineError
from tests.trained.cache import VARIABLE, TrainedModel, find_trained, obtain_trained
from tests.trained.catalogue import CATALOGUE

NAMES = [entry.name for entry in CATALOGUE]


@click.command(
    epilog=f"Models are kept in ${VARIABLE}, by default in the user's cache directory, under a "
    "digest of the training code, of Python and of the libraries. What is there is not made again."
)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(NAMES))
@click.option("--force", is_flag=True, help="Train again what is there already.")
@click.option("--list", "is_list", is_flag=True, help="Only say what there is; train nothing.")
def main(names: tuple[str, ...], *, force: bool, is_list: bool) -> None:
    """Train the small models that tests use, all of them or those named.

    Each training takes about a minute on one core; as many run side by side as there are cores.
    """
    chosen = [entry for entry in CATALOGUE if entry.name in (names or NAMES)]
    failures = 0
    if is_list:
        for entry in chosen:
            try:
                click.echo(_line(entry.name, find_trained(entry.name), "cached"))
            except PipelineError as err:
                failures += 1
                click.echo(f"error: {err}", err=True)
            click.echo(f"    {entry.task}: {entry.summary}")
        sys.exit(int(failures > 0))
    with ThreadPoolExecutor(max_workers=min(len(chosen), cores())) as pool:
        waiting = {name: pool.submit(_train, name, force) for name in (e.name for e in chosen)}
        for future in waiting.values():
            try:
                click.echo(future.result())
            except PipelineError as err:
                failures += 1
                click.echo(f"error: {err}", err=True)
    sys.exit(3 if failures else 0)


def _train(name: str, is_forced: bool) -> str:
    started = time.monotonic()
    trained, is_new = obtain_trained(name, is_forced=is_forced)
    how = f"made in {time.monotonic() - started:.0f} s" if is_new else "cached"
    return _line(name, trained, how)


def _line(name: str, trained: TrainedModel | None, how: str) -> str:
    if trained is None:
        return f"{name:10} not trained yet"
    return f"{name:10} accuracy {trained.accuracy:.2%}  {how}  {trained.root}"


if __name__ == "__main__":
    main(prog_name="scripts/train_fixtures")
