"""Stores that were damaged, moved, shared out, merged, or made by another version: nothing is lost or wrong."""

import dataclasses
import logging
import os
import pickle
import shutil
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from zarr.storage import LocalStore

import dtl
from dtl import study as study_module
from dtl.engine import workers
from dtl.engine.store import OUTPUTS, Durable

N = 20  # models, in five batches


def identical(study, expected):
    xr.testing.assert_identical(study.results.load().drop_attrs(), expected.results.load().drop_attrs())


@pytest.fixture(scope="module")
def reference(problem, recipe, tmp_path_factory):
    return dtl.Study(problem, recipe, store=tmp_path_factory.mktemp("reference") / "s").run(N, progress=False)


@pytest.fixture
def study(problem, recipe, reference, tmp_path):
    """A copy of the reference's store, opened as a user would."""
    shutil.copytree(reference.store.folder, tmp_path / "s")
    return dtl.Study(problem, recipe, store=tmp_path / "s")


@pytest.fixture
def trained(monkeypatch):
    """The number of models of each batch that is trained."""
    sizes, original = [], workers.train_batch
    monkeypatch.setattr(workers, "train_batch", lambda *args: sizes.append(len(args[1])) or original(*args))
    return sizes


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)


DAMAGE = {
    "bit flipped": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "emptied": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("chunk", ["margin/c/0/2/0", "correct/c/0/2/0", "mask/c/2/0", "seed/c/2", "done/c/2"])
def test_a_damaged_chunk_is_named_and_its_batch_trained_again(study, reference, trained, caplog, how, chunk):
    DAMAGE[how](study.store.folder / chunk)
    name = chunk.split("/")[0]
    with pytest.raises(
        ValueError, match=f"{name} of models 8 to 11 in .* is damaged .*: run .* again with repair=True"
    ):
        study.results.load()
    with caplog.at_level(logging.WARNING):
        study.run(N, progress=False, repair=True)
    assert f"{chunk} of {study.store.zarr} was damaged" in caplog.text and trained == [4]
    identical(study, reference)


@pytest.mark.parametrize("chunk", ["margin/c/0/2/0", "correct/c/0/2/0", "done/c/2"])
def test_a_chunk_that_was_deleted_is_trained_again(study, reference, trained, chunk):
    (study.store.folder / chunk).unlink()
    study.run(N, progress=False, repair=True)
    assert trained == [4]
    identical(study, reference)


@pytest.mark.parametrize("name", ["margin/c/0", "mask/c", "seed/c"])
def test_chunks_that_were_exchanged_are_found(study, reference, trained, name):
    """Both are sound, so that no checksum of a file finds it."""
    one, other = (study.store.folder / name / str(batch) for batch in (1, 3))
    one.rename(one.with_name("kept"))
    other.rename(one)
    one.with_name("kept").rename(other)
    with pytest.raises(
        ValueError, match="of models (4 to 7|12 to 15) in .* is damaged .it holds other values than were saved"
    ):
        study.results.load()
    identical(study.run(N, progress=False, repair=True), reference)
    assert sum(trained) == 8


def test_a_store_whose_marks_are_damaged_can_be_opened_and_repaired(problem, recipe, study, reference, trained, caplog):
    for file in ("done/c/1", "digest/c/3/0"):
        flip(study.store.folder / file)
    again = dtl.Study(problem, recipe, store=study.store.folder)
    assert "done of models 4 to 7" in caplog.text and "repair=True" in caplog.text
    identical(again.run(N, progress=False, repair=True), reference)
    assert sum(trained) == 8


def test_names_that_were_edited_are_found(study):
    file = study.store.folder / "zarr.json"
    file.write_text(file.read_text().replace('"sky"', '"sea"'))
    with pytest.raises(ValueError, match="zarr.json in .* was edited or is damaged: restore this file from a copy"):
        study.results.load()
    with pytest.raises(ValueError, match="was edited or is damaged"):
        dtl.results.open(study.store.folder)


def test_a_missing_chunk_is_noticed_and_trained_again_without_being_asked(
    problem, recipe, study, reference, trained, caplog
):
    (study.store.folder / "margin/c/0/2/0").unlink()
    again = dtl.Study(problem, recipe, store=study.store.folder)
    assert "lacks margin/c/0/2/0: run again, which trains the models" in caplog.text
    assert again.results.model.values.tolist() == [*range(8), *range(12, N)]
    identical(again.run(N, progress=False), reference)
    assert trained == [4]


@pytest.mark.parametrize("name", ["label", "split"])
def test_labels_that_are_lost_are_noticed_and_written_again(problem, recipe, study, reference, trained, caplog, name):
    (study.store.folder / f"{name}/c/0").unlink()
    again = dtl.Study(problem, recipe, store=study.store.folder)
    assert f"lacks {name}/c/0: run again" in caplog.text
    with pytest.raises(ValueError, match=f"{name} in .* is damaged"):
        again.results.load()
    identical(again.run(N, progress=False), reference)
    assert trained == []


def test_what_is_marked_done_has_reached_the_disk(problem, recipe, tmp_path, monkeypatch):
    """Every file of a batch, and the names of it in its folders, before the mark."""
    flushed, descriptors, original = [], [], Durable._flush
    monkeypatch.setattr(Durable, "_flush", lambda self, file: original(self, file) or flushed.append(file))
    monkeypatch.setattr(os, "fsync", descriptors.append)
    dtl.Study(problem, recipe, store=tmp_path / "s").run(4, progress=False)
    names = [str(file.relative_to(tmp_path / "s")) for file in flushed]
    mark = names.index("done/c/0")
    for name in ("margin/c/0/0/0", "probability/c/0/0/0", "correct/c/0/0/0", "prediction/c/0/0/0", "digest/c/0/0"):
        assert name in names[:mark], name
    assert len(descriptors) > 2 * len(flushed)


@pytest.mark.parametrize("name", ["label", "split"])
def test_damaged_labels_cost_no_training(study, reference, trained, name):
    flip(study.store.folder / name / "c" / "0")
    with pytest.raises(ValueError, match=f"{name} in .* is damaged"):
        study.results.load()
    identical(study.run(N, progress=False, repair=True), reference)
    assert not trained


def test_a_sound_store_needs_no_repair(study, trained, caplog):
    study.run(N, progress=False, repair=True)
    assert not trained and not caplog.text
    fresh = dtl.Study(study.problem, study.recipe).run(4, progress=False, repair=True)
    assert fresh.results.sizes["model"] == 4


@pytest.mark.parametrize("name", ["margin", "done"])
def test_a_damaged_description_is_named(study, reference, name):
    file = study.store.folder / name / "zarr.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    for use in (lambda: study.results, lambda: study.run(N, progress=False, repair=True)):
        with pytest.raises(ValueError, match=f"{name}/zarr.json in .* is damaged .*: restore this file from a copy"):
            use()
    file.write_bytes(whole)
    identical(study, reference)


def test_moved_copied_and_renamed_stores(problem, recipe, reference, study, tmp_path, trained, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "s", tmp_path / "elsewhere" / "renamed")
    moved = dtl.Study(problem, recipe, store=tmp_path / "elsewhere" / "renamed").run(N, progress=False)
    identical(moved, reference)
    shutil.copytree(tmp_path / "elsewhere" / "renamed", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    copy = dtl.Study(problem, recipe, store="copy").run(N + 4, progress=False)
    assert trained == [4] and moved.results.sizes["model"] == N and copy.results.sizes["model"] == N + 4


def test_clocks_that_go_backwards(study, reference, trained, monkeypatch):
    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1999, 1, 1, tzinfo=tz)

    for file in study.store.folder.rglob("*"):
        os.utime(file, (4e9, 4e9))  # in 2096
    monkeypatch.setattr(study_module, "datetime", Past)
    study.run(N, progress=False).run(N + 2, progress=False)
    assert trained == [2] and study.results.attrs["runs"][-1]["date"].startswith("1999")
    identical(dtl.Study(study.problem, study.recipe).run(N, progress=False), reference)
    np.testing.assert_array_equal(study.results.margin[:, :N], reference.results.margin)


def test_a_store_of_another_version_is_refused(study):
    root = zarr.open_group(study.store.folder)
    settings: Any = root.attrs["settings"]
    root.attrs["settings"] = {**settings, "format": 2}
    with pytest.raises(ValueError, match=r"holds another study \(format is 2 there and 3 here\): use its settings"):
        dtl.Study(study.problem, study.recipe, store=study.store.folder)


# Shared out and merged


def test_two_halves_make_a_whole(problem, recipe, reference, tmp_path):
    one = dtl.Study(problem, recipe, store=tmp_path / "one").run(12, progress=False)
    two = dtl.Study(problem, recipe, store=tmp_path / "two").run(N, start=8, progress=False)
    assert two.results.model.values.tolist() == [*range(8, N)]
    whole = dtl.Study(problem, recipe, store=tmp_path / "whole")
    identical(whole.merge(tmp_path / "two").merge(str(tmp_path / "one")), reference)
    assert [run["models"] for run in whole.results.attrs["runs"][0]["merged"]] == [N]
    identical(one.merge(LocalStore(tmp_path / "two", read_only=True)), reference)
    identical(dtl.Study(problem, recipe).merge(tmp_path / "whole"), reference)  # into memory
    identical(whole.merge(reference.store.folder), reference)


def test_merges_that_are_refused(problem, recipe, study, reference, tmp_path):
    with pytest.raises(ValueError, match="none holds no results yet: give the store of a study that has run"):
        study.merge(tmp_path / "none")
    dtl.Study(problem, recipe, seed=1, store=tmp_path / "seed").run(4, progress=False)
    with pytest.raises(ValueError, match="seed is 1 there and 0 here"):
        study.merge(tmp_path / "seed")
    part = dtl.Study(problem, recipe, store=tmp_path / "part").run(4, progress=False)
    root: Any = study.store.open("r+")
    outputs = {name: root[name][:, [2]] for name in OUTPUTS}
    other = outputs | {"margin": outputs["margin"] + np.eye(1, outputs["margin"].shape[-1], 5, dtype=np.float32)}
    study.store.save(root, np.array([2]), other)  # as another processor would
    with pytest.raises(ValueError, match="models 2 are done in both stores and differ"):
        part.merge(study.store.folder)
    assert part.results.sizes["model"] == 4
    study.store.save(root, np.array([2]), outputs)
    flip(study.store.folder / "margin/c/0/4/0")
    with pytest.raises(ValueError, match="margin of models 16 to 19 in .* is damaged"):
        part.merge(study.store.folder)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_the_study_is_refused(problem, recipe, start):
    with pytest.raises(ValueError, match=rf"start must be one whole number in 0\.\.3, not {start}"):
        dtl.Study(problem, recipe).run(4, start=start)


# Models that diverge


@pytest.mark.parametrize("regime", ["fixed", "fixed+bn", "full"])
def test_a_diverged_model_is_named_and_the_others_are_kept(problem, recipe, reference, tmp_path, regime, monkeypatch):
    """One net of a batch has weights that are not finite; the others are what they are without it."""
    original, bad = workers.source_nets, [1, 2]

    def source_nets(source, masks, seeds, *args):
        nets = original(source, masks, seeds, *args)
        with torch.no_grad():
            for row, seed in enumerate(seeds):
                if seed in reference.seeds(N)[bad]:
                    nets.weight[row, 0, 0] = torch.nan
        return nets

    expected = dtl.Study(problem, recipe, transfer=regime).run(8, progress=False)
    study = dtl.Study(problem, recipe, transfer=regime, store=tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(workers, "source_nets", source_nets)
        with pytest.raises(RuntimeError, match=r"models 1, 2 diverged .* all others are: lower lr or finetune_lr"):
            study.run(8, progress=False)
    assert study.results.model.values.tolist() == [0, 3, 4, 5, 6, 7] and np.isfinite(study.outputs()).all()
    np.testing.assert_array_equal(study.results.margin, expected.results.margin[:, study.results.model.values])


def test_a_learning_rate_that_diverges(problem, recipe, tmp_path):
    study = dtl.Study(problem, dataclasses.replace(recipe, lr=1e30), store=tmp_path / "s", weights=tmp_path / "w")
    with pytest.raises(RuntimeError, match="models 0, 1, 2, 3, 4, 5, 6, 7 diverged"):
        study.run(8, progress=False)
    assert study.results.sizes["model"] == 0 and not [*(tmp_path / "w").iterdir()]


def test_fine_tuning_that_diverges(problem, recipe):
    study = dtl.Study(problem, dataclasses.replace(recipe, finetune_lr=1e30), transfer=("fixed", "full"))
    with pytest.raises(RuntimeError, match="models 0, 1, 2, 3 diverged"):
        study.run(4, progress=False)


# Pickles


def test_no_pickle_is_read(problem, recipe, reference, study, tmp_path, monkeypatch):
    weights = tmp_path / "w"
    dtl.Study(problem, recipe, weights=weights).run(4, progress=False)

    def refused(*args, **options):
        raise AssertionError("a pickle was read")

    for module in (pickle, torch):
        monkeypatch.setattr(module, "load", refused)
    identical(study.run(N, progress=False, repair=True), reference)
    dtl.Study(problem, recipe, store=tmp_path / "t", weights=weights).run(4, progress=False).merge(study.store.folder)
    stored = {file.suffix for folder in (tmp_path / "t", weights) for file in folder.rglob("*") if file.is_file()}
    assert stored == {".json", ".safetensors", ""}  # Zarr's descriptions, weights, chunks


def test_marks_that_a_run_is_about_to_write_are_waited_for(problem, recipe, tmp_path, caplog, monkeypatch):
    """Digests are saved before marks: who reads in between finds nothing wrong; without a run they are missed."""
    study = dtl.Study(problem, recipe, store=tmp_path / "s").run(4, progress=False)
    mark, away = tmp_path / "s/done/c/0", tmp_path / "away"
    mark.rename(away)
    with monkeypatch.context() as patch:
        patch.setattr("dtl.engine.store.time.sleep", lambda _: away.rename(mark))
        assert study.results.sizes["model"] == 4 and not caplog.records
    mark.rename(away)
    assert study.results.sizes["model"] == 0
    assert "lacks done/c/0: run again" in caplog.text
