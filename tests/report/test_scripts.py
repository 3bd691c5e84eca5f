"""The scripts of the page are the ones that their packages hold, and data cannot end its element."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math

import pytest

from pipeline.report.scripts import load_scripts, script_data

VENDOR = importlib.resources.files("pipeline.report") / "vendor"
VERSIONS = json.loads((VENDOR / "versions.json").read_text())


@pytest.mark.parametrize("name", VERSIONS)
def test_a_vendored_file_is_the_one_of_its_package(name: str) -> None:
    content = (VENDOR / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == VERSIONS[name]["sha256"]


def test_no_file_is_vendored_unseen() -> None:
    assert {file.name for file in VENDOR.iterdir()} == {*VERSIONS, "LICENSE", "versions.json"}


def test_licences_come_with_the_scripts_and_no_source_map_is_asked_for() -> None:
    texts = load_scripts().texts
    assert len(texts) == 4
    for holder in ("University of Washington Interactive Data Lab", "Mike Bostock", "Mapbox"):
        assert holder in texts[0]
    assert not any("sourceMappingURL" in text for text in texts)
    assert sum(map(len, texts)) < 850_000


@pytest.mark.parametrize("text", ["</script>", "<!-- <script>", "a&b", "\u2028", "</SCRIPT >"])
def test_data_of_a_script_has_no_sign_of_markup(text: str) -> None:
    data = script_data({"text": text, text: 1})
    assert json.loads(data) == {"text": text, text: 1}
    assert not set("<>&\u2028") & set(data)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_know_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_data({"x": number})
