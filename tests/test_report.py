"""The report: every number of the page is in its files, and what it says follows from the study."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

import dtl
from dtl._audit import Audit
from dtl._checks import InputError

NUMBERS = ["influence", "stderr", "low", "high"]


@pytest.fixture(scope="module")
def results() -> dtl.results.Results:
    return dtl.results.open("imagenet20-cifar10").part("balanced")


@pytest.fixture(scope="module")
def page(results: dtl.results.Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    advice = dtl.Advice(("bee",), 0.0123, 0.0045, 0.0049, ("bee", "fox"), 0.05, 0.95)
    return dtl.report(results, tmp_path_factory.mktemp("report") / "found.html", advice, top=3)


def read(page: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(page.with_name(f"found-{name}.csv"))


def parsed(page: Path) -> Any:
    return BeautifulSoup(page.read_text("utf8"), "html.parser")


def test_tables_show_the_strongest_rows_of_the_files(page: Path) -> None:
    files = {f"Influence on {target}": rows for target, rows in read(page, "classes").groupby("target")}
    files["Influence on the whole target"] = read(page, "whole")
    tables = parsed(page).find_all("table")
    assert {" ".join(table.caption.text.split()) for table in tables} == set(files)
    for table in tables:
        rows = files[" ".join(table.caption.text.split())].sort_values("influence", ascending=False).set_index("source")
        cells = [[cell.text for cell in row.find_all("td")] for row in table.tbody.find_all("tr")]
        shown = pd.DataFrame(cells, columns=["source", *NUMBERS, "verdict"]).astype(dict.fromkeys(NUMBERS, float))
        assert shown["source"].tolist() == [*rows.index[:3], *rows.index[-3:]]
        np.testing.assert_allclose(shown[NUMBERS], rows.loc[shown["source"], NUMBERS], atol=5.1e-4)
        assert shown["verdict"].tolist() == rows.loc[shown["source"], "verdict"].tolist()


def test_every_number_in_a_sentence_is_in_the_file_of_facts(page: Path) -> None:
    soup = parsed(page)
    facts = " ".join(read(page, "facts")["fact"])
    said = " ".join(p.text for p in soup.select("h1, .decision p, p"))
    for fixed in ("intervals of 95%", *(link.text for link in soup.find_all("a")), soup.h1.text):
        said = said.replace(fixed, "")
    assert set(re.findall(r"\d[\d.]*", said)) <= set(re.findall(r"\d[\d.]*", facts))
    assert "Drop bee: expected gain +0.0123 ± 0.0045" in said


def test_files_hold_the_influences_of_the_study(page: Path, results: dtl.results.Results) -> None:
    found = results.influence(by="class")
    table = read(page, "classes").pivot(index="source", columns="target", values="influence")
    np.testing.assert_allclose(table.loc[list(found.sources), list(found.targets)], found.values, rtol=1e-5)
    low = read(page, "classes").pivot(index="source", columns="target", values="low")
    np.testing.assert_allclose(low.loc[list(found.sources), list(found.targets)], found.interval()[0], rtol=1e-5)


def test_established_is_benjamini_and_hochberg(page: Path, results: dtl.results.Results) -> None:
    p = results.influence(by="class").p_values().ravel()
    ordered = np.sort(p)
    passing = np.flatnonzero(ordered <= 0.05 * np.arange(1, len(p) + 1) / len(p))  # the step-up rule, by hand
    established = len(passing) and passing[-1] + 1
    table = read(page, "classes")
    assert np.count_nonzero(table["verdict"] != "not established") == established > 10
    sentence = next(fact for fact in read(page, "facts")["fact"] if "pairs" in fact)
    counts = [np.count_nonzero(table["verdict"] == word) for word in ("helps", "hurts")]
    assert f"{counts[0]} help and {counts[1]} hurt" in sentence


def test_page_needs_nothing_else(page: Path) -> None:
    soup = parsed(page)
    assert not soup.find_all(["script", "link"])
    assert all(image["src"].startswith("data:") and image["alt"] for image in soup.find_all("img"))
    assert all(page.with_name(link["href"]).is_file() for link in soup.find_all("a"))


def test_without_advice_it_advises_nothing_and_names_are_text(results: dtl.results.Results, tmp_path: Path) -> None:
    names = ["<b>x</b>", *results.data["source"].values[1:].tolist()]
    odd = dtl.results.Results(results.data.assign_coords(source=names))
    html = dtl.report(odd, tmp_path / "odd.html").read_text("utf8")
    assert "<b>x" not in html and "&lt;b&gt;x" in html
    assert "Nothing was retrained" in html and "Drop" not in html


def test_scores_are_a_section_when_asked_for(results: dtl.results.Results, page: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    values = {"influence": truth + rng.normal(size=40), "NCE": rng.normal(size=40), "images": np.ones(40)}
    found = dtl.scores.agreement(values, truth, against="influence").to_dataframe().reset_index()
    found = found.assign(kind=["influence", "score", "baseline"], models=40, truth="full", split="validation")
    soup = parsed(dtl.report(results, tmp_path / "found.html", scores=found))
    table = soup.find("caption", string="Agreement with the accuracy of models").parent
    cells = [[cell.text for cell in row.find_all("td")] for row in table.tbody.find_all("tr")]
    file = pd.read_csv(tmp_path / "found-scores.csv")
    assert [row[0] for row in cells] == file["predictor"].tolist() == list(values)
    for row, line in zip(cells, file.to_dict("records"), strict=True):
        numbers = [line[name] for name in ("r", "low", "high", "behind", "behind_low", "behind_high")]
        assert [float(cell or "nan") for cell in row[1:-1]] == pytest.approx(numbers, abs=5.1e-3, nan_ok=True)
    assert len({head.text for head in table.thead.find_all("th")}) == len(cells[0])
    assert "40 models, judged by test accuracy after full transfer" in soup.text
    assert all((tmp_path / link["href"]).is_file() for link in soup.find_all("a"))
    assert "Agreement with" not in page.read_text("utf8")


def test_an_audit_is_a_section(results: dtl.results.Results, page: Path, tmp_path: Path) -> None:
    cells = pd.DataFrame({"view": ["tint", "blur"], "measure": "drop", "class": "", "difference": [0.2, 0.01]})
    cells = cells.assign(stderr=0.0213, q=[0.0001, 0.4])
    sources = pd.DataFrame({"view": ["tint"], "source": ["bee <b>"], "influence": [0.3125], "q": [0.01]})
    repairs = pd.DataFrame({"repair": ["tint in 10%"], "steps": [12], "leaves": [0.0417], "enough": [True]})
    found = Audit("kept", "fixed", 8, 0.05, cells, sources, repairs)
    soup = parsed(dtl.report(results, tmp_path / "found.html", audit=found))
    tables = [soup.find("caption", string=caption).parent for caption in found.tables]
    rows = [[cell.text for cell in table.tbody.find_all("td")] for table in tables]
    assert rows[0] == ["tint", "drop", "", "0.200", "0.021", "0.000"]
    assert rows[1] == ["tint", "bee <b>", "0.312", "0.010"]
    assert rows[2] == ["tint in 10%", "12", "0.042", "True"]
    for name, table in (("cells", cells), ("sources", sources), ("repairs", repairs)):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"found-{name}.csv", keep_default_na=False), table)
    said = "2 cells were looked at, 8 models each", "at least half of what exceeds a model from scratch: tint in 10%."
    assert all(text in soup.text and text in str(found) for text in said) and "cells were" not in page.read_text("utf8")
    useless = dataclasses.replace(found, repairs=repairs.assign(enough=False))
    assert "None takes away half of what exceeds a model from scratch" in useless.verdict
    none = Audit("kept", "fixed", 8, 0.05, cells.assign(q=1.0), sources.iloc[:0], None)
    text = parsed(dtl.report(results, tmp_path / "none.html", audit=none)).text
    assert "In none does the transferred model" in text and "| --- |" not in str(none)


def test_results_are_taken_as_a_study_gives_them(results: dtl.results.Results, tmp_path: Path) -> None:
    one, two = (dtl.report(of, tmp_path / f"{type(of).__name__}.html") for of in (results, results.data))
    assert pd.read_csv(tmp_path / f"{one.stem}-whole.csv").equals(pd.read_csv(tmp_path / f"{two.stem}-whole.csv"))


@pytest.mark.parametrize(("out", "says"), [("found.pdf", "html"), ("nowhere/found.html", "nowhere")])
def test_bad_places_are_refused_before_anything_is_read(out: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, FileNotFoundError), match=says):
        dtl.report(tmp_path / "no-study", tmp_path / out)


def test_a_table_that_is_none_of_scores_is_refused(tmp_path):
    balanced = dtl.results.open("imagenet20-cifar10").part("balanced")
    with pytest.raises(InputError, match="the table that the command scores writes"):
        dtl.report(balanced, tmp_path / "found.html", scores=pd.DataFrame({"a": [1]}))
