"""A study in a Zarr store of somebody else: inside a transaction of Icechunk, as it would be in object storage."""

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr

import dtl
from dtl.results import results_of


def test_a_study_in_a_transaction(problem, recipe):
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    dtl.Study(problem, recipe, store=session.store).run(8, progress=False)
    session.commit("eight models")

    def committed() -> xr.Dataset:
        return results_of(zarr.open_group(repository.readonly_session("main").store, mode="r")).load()

    expected = dtl.Study(problem, recipe).run(12, progress=False).results.load()
    xr.testing.assert_identical(committed().drop_attrs(), expected.sel(model=range(8)).drop_attrs())

    session = repository.writable_session("main")
    study = dtl.Study(problem, recipe, store=session.store)
    assert study.results.sizes["model"] == 8
    study.run(12, progress=False)
    xr.testing.assert_identical(study.results.load().drop_attrs(), expected.drop_attrs())
    assert committed().sizes["model"] == 8, "others see what was committed"
    session.commit("twelve")
    np.testing.assert_array_equal(committed().model, np.arange(12))

    other = repository.readonly_session("main").store
    with pytest.raises(Exception, match="(?i)read.?only"):
        dtl.Study(problem, recipe, store=other).run(16, progress=False)
