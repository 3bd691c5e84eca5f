"""`convert judge`: the verdict of a build with other gates, without the build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import BuildOptions, BuildResult, build
from pipeline.digest_memory import DigestMemory, file_identity
from pipeline.errors import ArtifactError, PipelineError, RecipeError
from pipeline.publish import verify_artifact
from pipeline.recipe import load_recipe_file, load_recipes
from pipeline.rejudging import (
    Judgement,
    choose_recipe,
    find_report,
    judge_again,
    judge_by,
    write_judgement,
)
from pipeline.report import load_report, report_json
from pipeline.stored_reports import locate_report, opened_report
from pipeline.verification import verify_published
from tests.cli.artifacts import edit_manifest
from tests.cli.commands import run_convert
from tests.recipes import FP32, INT8, RTX, write_recipe

GATES: dict[str, Any] = {
    "parity": {"cosine_similarity": {"min": 0.8}},
    "coverage": {"size_ratio": {"max": 0.9}, "quantized_weights": {"min": 0.5}},
    "targets": {"cpu-fp32": {"parity": {"relative_l2": {"max": 1e-3}}}},
    "allow_not_run": ["device_parity"],
}
STRICT = GATES | {"parity": {"sqnr_db": {"min": 1e3}}}
LOOSE = {"parity": {"max_abs_diff": {"max": 1e9}}, "allow_not_run": ["device_parity", "speed"]}
UNCHECKED = GATES | {"allow_not_run": []}
TARGETS = [FP32, INT8, RTX]


class Built:
    """A folder with an artifact that passed and one that did not, of one checkpoint."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.passed = self.build("passed", GATES).directory
        self.failed = self.build("failed", STRICT).directory

    def recipe(self, file: str, gates: dict[str, Any], **changes: Any) -> Path:
        changes = {"targets": TARGETS, "gates": gates} | changes
        return write_recipe(self.folder / f"{file}.yaml", self.checkpoint, **changes)

    def build(self, file: str, gates: dict[str, Any]) -> BuildResult:
        options = BuildOptions(
            output=self.folder / "artifacts", store=self.folder / "store", threads=1
        )
        return build(load_recipe_file(self.recipe(file, gates)), options)

    def judge(self, artifact: Path, file: str, gates: dict[str, Any], **changes: Any) -> Judgement:
        loaded = load_recipe_file(self.recipe(file, gates, **changes))
        return judge_by(find_report(str(artifact), self.folder), loaded)


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, sentence_encoder: Path, filled_store: Path
) -> Built:
    folder = tmp_path_factory.mktemp("rejudging")
    shutil.copytree(filled_store, folder / "store", symlinks=True)
    return Built(folder, sentence_encoder)


@pytest.mark.parametrize("which", ["passed", "failed"])
def test_the_stored_verdict_follows_from_the_stored_numbers(built: Built, which: str) -> None:
    judgement = judge_again(find_report(str(getattr(built, which)), built.folder))
    assert judgement.report.verdict == which
    assert judgement.changes == ()


@pytest.mark.parametrize("gates", [GATES, STRICT, LOOSE, UNCHECKED], ids=range(4))
@pytest.mark.parametrize("which", ["passed", "failed"])
def test_judging_says_what_a_build_with_these_gates_says(
    built: Built, which: str, gates: dict[str, Any]
) -> None:
    judged = built.judge(getattr(built, which), "again", gates).report
    real = built.build("again", gates).report()
    assert judged.verdict == real.verdict
    assert judged.reasons == real.reasons
    assert judged.gates == real.gates
    assert judged.recipe == real.recipe


def test_what_changed_is_named_gate_by_gate(built: Built) -> None:
    changes = built.judge(built.passed, "strict", STRICT).changes
    kinds = {(c.kind, (c.after or c.before).metric.rpartition(".")[2]) for c in changes}  # type: ignore[union-attr]
    assert kinds == {("new", "sqnr_db"), ("gone", "cosine_similarity")}
    tighter = GATES | {
        "coverage": {"size_ratio": {"max": 0.01}, "quantized_weights": {"min": 0.5}}
    }
    broken = [c for c in built.judge(built.passed, "tight", tighter).changes if c.kind == "broken"]
    assert {c.after.metric for c in broken if c.after} == {"quantize_dynamic.size_ratio"}
    looser = GATES | {"parity": {"cosine_similarity": {"min": 0.7}}}
    assert {c.kind for c in built.judge(built.passed, "looser", looser).changes} == {"limit"}


def test_a_re_judged_report_says_so_in_every_form(built: Built, tmp_path: Path) -> None:
    judgement = built.judge(built.failed, "loose", LOOSE)
    write_judgement(judgement, tmp_path / "out", None)
    report = load_report(tmp_path / "out" / "report.json")
    assert report == judgement.report
    assert report.rejudged is not None
    assert (report.rejudged.recipe, report.rejudged.stored_verdict) == ("loose.yaml", "failed")
    assert load_report(built.failed / "report.json").rejudged is None
    for name in ("report.md", "report.html", "junit.xml"):
        text = (tmp_path / "out" / name).read_text()
        assert "Judged again on" in text
        assert report.rejudged.recipe_sha256[:12] in text


def test_the_artifact_is_never_changed(built: Built) -> None:
    before = {path: path.read_bytes() for path in built.passed.rglob("*") if path.is_file()}
    judgement = built.judge(built.passed, "strict", STRICT)
    for place in (built.passed, built.passed / "cpu-fp32", built.passed / "new" / "er"):
        with pytest.raises(RecipeError, match="artifacts are never changed"):
            write_judgement(judgement, place, None)
    assert verify_artifact(built.passed) == ()
    assert before == {
        path: path.read_bytes() for path in built.passed.rglob("*") if path.is_file()
    }


def test_other_differences_are_named_and_not_applied(built: Built) -> None:
    data = {"evaluation": {"source": "builtin:stdlib-docstrings", "samples": 7, "seed": 0}}
    per_tensor = {**INT8, "quantization": {"mode": "dynamic", "per_channel": False}}
    judgement = built.judge(
        built.passed, "other", GATES, data=data, name="else", targets=[RTX, FP32, per_tensor]
    )
    assert judgement.report.verdict == "passed"
    assert judgement.report.name == "tiny"
    assert len(judgement.ignored) == 3
    for words in (
        "`data.evaluation.samples` is 6",
        "`name` is",
        "`targets.cpu-int8.quantization.per",
    ):
        assert any(words in sentence for sentence in judgement.ignored), words
    assert sum("Not applied" in warning for warning in judgement.report.warnings) == 3


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "fewer targets": (GATES | {"targets": {}}, {"targets": [FP32, INT8]}, "targets", "has no `rtx-fp16`"),
    "speed": (
        GATES | {"speed": {"min_speedup_over_reference": 1.0, "margin": 0.1}},
        {"benchmark": {}},
        "gates.speed",
        "the speed of `cpu-fp32` was not measured",
    ),
    "speed of one": (
        GATES | {"targets": {"cpu-int8": {"speed": {"min_speedup_over_reference": 1.0, "margin": 0.1}}}},
        {"benchmark": {}},
        "gates.targets.cpu-int8.speed",
        "the speed of `cpu-int8` was not measured",
    ),
    "quality": (GATES | {"quality": {"drop": {"max": 0.1}}}, {}, "gates.quality", "was not computed"),
    "classes": (
        GATES | {"parity": {"top1_agreement": {"min": 0.9}}},
        {},
        "gates.parity.top1_agreement",
        "no classes",
    ),
    "coverage": (
        GATES | {"coverage": {"quantised_weights": {"min": 0.9}}},
        {},
        "gates.coverage.quantised_weights",
        "did you mean `quantized_weights`?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_was_not_measured_is_refused_at_its_line(built: Built, kind: str) -> None:
    gates, changes, where, words = REFUSED[kind]
    with pytest.raises(RecipeError, match=words) as caught:
        built.judge(built.passed, "refused", gates, **changes)
    assert caught.value.where.endswith(f": {where}")


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """The artifact that passed, to damage."""
    return Path(shutil.copytree(built.passed, tmp_path / "artifact"))


def _edit(report: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(report.read_text())
    change(document)
    report.write_text(json.dumps(document))


def test_a_damaged_artifact_is_not_judged(copied: Path) -> None:
    _edit(copied / "report.json", lambda report: report.update(verdict="failed"))
    for name in (copied, copied / "report.json"):
        with pytest.raises(ArtifactError, match=r"'report\.json' has") as caught:
            find_report(str(name), copied)
        assert caught.value.hint == f"convert verify {copied}"


def test_the_report_behind_latest_is_that_of_its_artifact(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(copied)
    found = find_report(str(tmp_path / "latest" / "report.json"), tmp_path)
    assert found.report == load_report(copied / "report.json")


def test_a_file_is_read_again_only_when_it_may_have_changed(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.manifest.REMEMBERED_BYTES", 1)
    monkeypatch.setattr("pipeline.digest_memory.RACY_SECONDS", -1.0)
    store = tmp_path / "store"
    store.mkdir()
    place = locate_report(str(copied), tmp_path)
    files = sum(path.is_file() for path in copied.rglob("*")) - 1  # the manifest lists itself not

    def unread(**options: bool) -> int:
        with opened_report(place, store, **options) as finish:
            return finish().unread

    assert (unread(), unread(), unread(must_rehash=True)) == (0, files, 0)
    model = copied / "cpu-fp32" / "model.onnx"
    before = model.stat()
    with model.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model.stat().st_size == before.st_size
    for _ in range(2):  # what is damaged stays damaged
        with pytest.raises(ArtifactError, match=r"cpu-fp32/model\.onnx' has SHA-256"):
            unread()


def test_only_large_files_are_taken_from_memory(copied: Path, tmp_path: Path) -> None:
    memory = DigestMemory(tmp_path / "digests.json")
    report = copied / "report.json"
    memory.learn(report, file_identity(report), "0" * 64)
    assert verify_published(copied, memory).problems == ()
    assert memory.recalled == 0


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "verdict": (lambda r: r.update(verdict="failed"), "the verdict is failed, and should be passed"),
    "gate": (lambda r: r["gates"][0].update(verdict="failed"), "is failed, and should be passed"),
    "number": (lambda r: r["gates"][1].update(measured=0.99999), "was 0.99999"),
    "gone": (lambda r: r["gates"].pop(0), "the report does not have it"),
    "added": (
        lambda r: r["gates"].append({**r["gates"][0], "metric": "more"}), "no gate makes it"
    ),
    "limit": (
        lambda r: r["recipe"]["gates"]["parity"].update(cosine_similarity={"min": 0.81}), ">= 0.81"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_verdict_that_does_not_follow_is_an_error(
    built: Built, tmp_path: Path, kind: str
) -> None:
    alone = tmp_path / "report.json"
    shutil.copy(built.passed / "report.json", alone)
    change, words = CONTRADICTIONS[kind]
    stored = find_report(str(alone), tmp_path)
    assert stored.artifact is None
    judge_again(stored)
    _edit(alone, change)
    with pytest.raises(ArtifactError, match="does not follow") as caught:
        judge_again(find_report(str(alone), tmp_path))
    assert words in caught.value.message


def test_what_a_foreign_report_says_does_no_harm_in_a_terminal(
    built: Built, tmp_path: Path
) -> None:
    alone = tmp_path / "report.json"
    shutil.copy(built.passed / "report.json", alone)
    _edit(alone, lambda report: report["gates"][0].update(metric="\x1b[2Jgone"))
    done = run_convert("judge", alone, cwd=tmp_path)
    assert done.returncode == 3
    assert "gone" in done.stderr
    assert "\x1b" not in done.stderr


UNREADABLE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "schema version": (lambda r: r.update(schema_version=99), "has schema_version 99"),
    "recipe": (lambda r: r["recipe"].update(recipe=2), "not one of this version"),
    "key": (lambda r: r.update(unknown=1), "is damaged: unknown"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_report_of_another_version_is_an_error(built: Built, tmp_path: Path, kind: str) -> None:
    alone = tmp_path / "report.json"
    shutil.copy(built.passed / "report.json", alone)
    change, words = UNREADABLE[kind]
    _edit(alone, change)
    with pytest.raises(ArtifactError, match=words):
        judge_again(find_report(str(alone), tmp_path))


def test_what_is_no_artifact_is_refused(built: Built, tmp_path: Path) -> None:
    for name in (built.passed / "manifest.json", tmp_path, tmp_path / "nothing"):
        with pytest.raises(PipelineError):
            find_report(str(name), tmp_path)


def test_a_failed_stage_stays_an_error_whatever_the_gates_are(built: Built) -> None:
    stored = find_report(str(built.passed), built.folder)
    from tests.report.example import KILLED

    last = stored.report.nodes[-1].model_copy(update={"state": "failed", "failure": KILLED})
    report = stored.report.model_copy(update={"nodes": (*stored.report.nodes[:-1], last)})
    from dataclasses import replace

    loaded = load_recipe_file(built.recipe("loose", LOOSE))
    assert judge_by(replace(stored, report=report), loaded).report.verdict == "error"


def test_of_a_matrix_the_recipe_of_the_artifact_is_taken(built: Built) -> None:
    gates = GATES | {"parity": {"cosine_similarity": {"min": "${limit}"}}}
    path = built.recipe("matrix", gates, name="${name}")
    document = json.loads(path.read_text())
    document["matrix"] = {
        "include": [{"name": "tiny", "limit": 0.7}, {"name": "other", "limit": 1}]
    }
    path.write_text(json.dumps(document))
    chosen = choose_recipe(load_recipes(path), "tiny")
    assert chosen.recipe.name == "tiny"
    with pytest.raises(RecipeError, match="none of its 2 recipes is named `third`"):
        choose_recipe(load_recipes(path), "third")


# --- command line ---------------------------------------------------------------------------


def test_the_command_prints_a_verdict_and_what_changed(built: Built, tmp_path: Path) -> None:
    recipe = built.recipe("strict", STRICT)
    done = run_convert(
        "judge", built.passed, "--recipe", recipe, "--output", "out", "--json", cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "failed"
    assert document["stored_verdict"] == "passed"
    assert document["is_verified"]
    assert {change["kind"] for change in document["changes"]} == {"new", "gone"}
    assert "passed before, failed now" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "report.md", "report.html", "report.sarif", "junit.xml",
    }  # fmt: skip
    sarif = json.loads((tmp_path / "out" / "report.sarif").read_text())
    (place, *_) = {
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in sarif["runs"][0]["results"]
    }
    assert place == "strict.yaml"


def test_latest_is_judged_by_its_own_gates_with_exit_code_0(built: Built) -> None:
    done = run_convert("judge", "latest", cwd=built.folder)
    assert done.returncode == 0, done.stderr
    assert "its verdict, passed, follows" in done.stderr
    assert not done.stdout


def test_errors_of_the_command_have_their_exit_codes(built: Built, copied: Path) -> None:
    edit_manifest(copied, verdict="failed")
    done = run_convert("judge", copied, "--json", cwd=built.folder)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (3, "error")
    done = run_convert("judge", built.passed, "--var", "a=b", cwd=built.folder)
    assert done.returncode == 2


def test_github_reads_annotations_from_standard_error_and_a_summary(
    built: Built, tmp_path: Path
) -> None:
    recipe = built.recipe("strict", STRICT)
    where = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = run_convert("judge", built.passed, "--recipe", recipe, "--json", cwd=tmp_path, **where)
    json.loads(done.stdout)
    told = [line for line in done.stderr.splitlines() if line.startswith("::error")]
    assert told
    assert all(line.startswith("::error file=strict.yaml,line=") for line in told)
    assert "Failed: tiny" in (tmp_path / "summary.md").read_text()
    silent = run_convert(
        "judge", built.passed, "--recipe", recipe, "--no-github", cwd=tmp_path, **where
    )
    assert "::error" not in silent.stderr
    elsewhere = run_convert("judge", built.passed, "--recipe", recipe, cwd=tmp_path)
    assert "::error" not in elsewhere.stderr


def test_a_mistake_in_a_recipe_is_annotated_at_its_line(built: Built, tmp_path: Path) -> None:
    recipe = built.recipe("mistake", GATES | {"parity": {"cosine": {"min": 0.8}}})
    done = run_convert("plan", recipe, cwd=tmp_path, GITHUB_ACTIONS="true")
    assert done.returncode == 2
    assert any(
        line.startswith("::error file=mistake.yaml,line=") and "cosine" in line
        for line in done.stderr.splitlines()
    )


def test_judging_imports_nothing_heavy(built: Built) -> None:
    code = (
        "import sys; from pipeline.cli.main import run; "
        f"run(['judge', {str(built.passed)!r}, '--recipe', {str(built.recipe('l', LOOSE))!r}]); "
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'onnx', 'numpy', 'jinja2') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_stored_report_is_as_it_was(built: Built) -> None:
    """Last: nothing above has changed what it judged."""
    report = load_report(built.passed / "report.json")
    assert report_json(report) == (built.passed / "report.json").read_text()
