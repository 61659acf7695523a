"""Serving where a study can have several classes, or none: the answers, and the page in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from csr.bundle.format import Bundle
from serving.deploy.service import Service
from tests.serving.conftest import serve_instead
from tests.serving.interfaces.test_api import BOX, upload
from tests.serving.interfaces.test_page import key, open_sample, page, say, served, url

__all__ = ["key", "page", "served", "url"]


@pytest.fixture(scope="session")
def bundle(multilabel_bundle: Bundle) -> Bundle:
    return multilabel_bundle


@pytest.fixture
def samples(bundle: Bundle, client: TestClient) -> list[bytes]:
    files = sorted((bundle.path / "samples").glob("*.png"))
    assert len(files) >= 3
    return [file.read_bytes() for file in files]


def test_what_is_found_are_the_classes_that_reach_the_bundle_s_thresholds(
    bundle: Bundle, client: TestClient, samples: list[bytes]
) -> None:
    thresholds = dict(zip(bundle.manifest.classes, bundle.manifest.thresholds or (), strict=True))
    assert set(thresholds.values()) - {0.5}, "the tiny run should choose some threshold on its validation split"
    counts = set()
    for data in samples:
        prediction = upload(client, data).json()["prediction"]
        chances = {each["name"]: each["probability"] for each in prediction["classes"]}
        assert {each["name"]: each["threshold"] for each in prediction["classes"]} == thresholds
        found = [name for name in chances if chances[name] >= thresholds[name]]
        expected = sorted(found, key=lambda name: -chances[name])
        assert (prediction["task"], prediction["found"]) == ("multilabel", expected)
        assert prediction["top"] == max(chances, key=lambda name: chances[name])
        away = [
            (own - chance) / own if chance < own else (chance - own) / (1 - own)
            for chance, own in ((chances[name], thresholds[name]) for name in chances)
        ]
        assert prediction["margin"] == pytest.approx(min(away), abs=1e-5)
        counts.add(len(expected))
    assert len(counts) > 1, "the samples should differ in how much is found"


def test_each_class_has_a_probability_of_its_own(bundle: Bundle, client: TestClient, samples: list[bytes]) -> None:
    prediction = upload(client, samples[0]).json()["prediction"]
    logits = np.array([each["logit"] for each in prediction["classes"]])
    chances = np.array([each["probability"] for each in prediction["classes"]])
    odds = np.log(chances / (1 - chances))
    assert abs(chances.sum() - 1) > 1e-3
    scale = odds[np.abs(logits).argmax()] / logits[np.abs(logits).argmax()]
    np.testing.assert_allclose(odds, logits * scale, atol=1e-3)  # one temperature for all, and a sigmoid


def test_an_interaction_says_what_was_found_before_and_after(
    bundle: Bundle, client: TestClient, samples: list[bytes]
) -> None:
    moved = 0
    for data in samples:
        study = upload(client, data).json()
        state = {"boxes": [BOX], "rejected": list(bundle.manifest.concepts[:6]), "image": study["image"]}
        answer = client.post(f"/v1/studies/{study['digest']}/interactions", json=state).json()
        changes = answer["changes"]
        assert changes["found_before"] == answer["before"]["found"] == study["prediction"]["found"]
        assert changes["found_after"] == answer["after"]["found"]
        moved += changes["found_before"] != changes["found_after"]
    assert moved > 0, "no interaction changed what is found, so the test says nothing"


def test_the_page_marks_every_class_that_is_found(page: Page, bundle: Bundle) -> None:
    seen = set()
    for number in range(1, 1 + len(list((bundle.path / "samples").glob("*.png")))):
        open_sample(page, number)
        found = page.locator("#classes .class.found")
        note = page.locator("#found")
        expect(note).to_be_visible()
        said = note.inner_text()
        seen.add(said)
        if found.count() == 0:
            assert said == "Nothing found"
        else:
            assert said.startswith("Found: ") and len(said.split(", ")) == found.count()
        thresholds = dict(zip(bundle.manifest.classes, bundle.manifest.thresholds or (), strict=True))
        for row in page.locator("#classes .class").all():
            chance = int(re.search(r"(\d+) %", row.inner_text()).group(1))  # type: ignore[union-attr]
            least = round(100 * thresholds[row.get_attribute("data-class") or ""])
            assert ("found" in (row.get_attribute("class") or "").split()) == (
                chance >= least and "<" not in row.inner_text()
            )
            bar = row.locator(".bar.decides")
            assert bar.evaluate("node => node.style.getPropertyValue('--threshold')") == f"{least}%"
    expect(page.locator("#classes .class")).to_have_count(len(bundle.manifest.classes))
    assert len(seen) > 1


def test_a_bundle_without_thresholds_decides_at_a_half(
    bundle: Bundle, client: TestClient, service: Service, samples: list[bytes]
) -> None:
    """One of the format before them."""
    serve_instead(service, Bundle(bundle.path, replace(bundle.manifest, thresholds=None)))
    for data in samples:
        classes = upload(client, data).json()["prediction"]["classes"]
        assert {each["threshold"] for each in classes} == {0.5}


def test_the_page_says_which_class_the_model_is_least_sure_of(
    page: Page, served: Service, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        served.models.champion.explainer, "manifest", replace(bundle.manifest, ask_margin=1.0, abstain_below=1.0)
    )
    expect(page.locator("#abstains")).to_be_hidden()
    say(page, "mass", "rejected")
    expect(page.locator("#abstains")).to_be_visible()
    expect(page.locator("#help")).to_be_visible()
    expect(page.locator("#help")).to_have_text(
        re.compile(r"asks for a second look: .+ \((< )?\d+ %\) is close to the \d+ % from which it is found")
    )
    expect(page.locator("#abstains")).to_have_text(re.compile(r"abstains: it is not sure enough of every class"))


def test_the_page_names_the_true_diagnoses_of_a_sample(page: Page) -> None:
    page.locator("#reference summary").click()
    expect(page.locator("#reference-text")).to_contain_text("Diagnosis: ")
    assert "undefined" not in page.locator("body").inner_text()
