"""Where a run read its data from is told by the run itself, since MLflow keeps a data set's first source for all."""

from __future__ import annotations

from types import SimpleNamespace

from kd_mlflow.entrypoints.record import record_data
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter


def test_each_run_tells_its_own_source_and_splits_of_one_data_set(place, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    monkeypatch.chdir(tmp_path)
    client = connect(place.uri)
    shown = []
    for data, source, bad in (
        ("before", str(tmp_path / "before"), ()),
        ("after/../after", str(tmp_path / "after"), ("broken.jpg",)),
        ("https://me:secret@host/photos.tar", "https://***@host/photos.tar", ()),
        ("digits", "digits", ()),
    ):
        if bad or data == "before":
            (tmp_path / source).mkdir()
        splits = {"train": range(6 - len(bad)), "val": range(2), "test": range(2)}
        store = SimpleNamespace(
            name="photos", digest="pixels", classes=("a", "b"), image_size=32, bad=bad, splits=splits
        )
        session = SimpleNamespace(store=store, config=SimpleNamespace(data=data))
        with RunWriter.open(client, role="student", experiment="photos", run_name="s", tags={}) as run:
            record_data(session, run, "training")
        recorded = client.get_run(run.run_id)
        assert recorded.data.tags["kd.data_source"] == source
        assert recorded.data.tags["kd.data_splits"] == f"train {6 - len(bad)}, val 2, test 2"
        assert recorded.data.tags["kd.data_bad_files"] == str(len(bad))
        (entry,) = recorded.inputs.dataset_inputs
        shown.append(entry.dataset.source)
    assert set(shown) == {shown[0]}
