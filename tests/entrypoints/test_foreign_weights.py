"""What a bare state dict does not say, measured on validation: mean and std, scale, channels, order of classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kd_mlflow.config import DistillConfig, StudentConfig, TeacherConfig, recipe, resolve
from kd_mlflow.entrypoints import candidates as measuring
from kd_mlflow.entrypoints.distill import distill
from kd_mlflow.entrypoints.foreign_weights import Preparation, preparation
from kd_mlflow.entrypoints.network import build_network, network_spec, start_preparation, training_fingerprint
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError
from kd_mlflow.models.rearrange import sort_head, turn_channels
from kd_mlflow.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import download, find_runs, read_run
from tests.conftest import TINY, Place, make_place
from tests.entrypoints.tiny import make

SIZE = 32
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
OPTIONS = {"teacher_arch": TINY, "student": TINY, "image_size": SIZE, "batch_size": 16, "epochs": 1}
BRIGHTER, DARKER = (0.45, 0.5, 0.55), (0.25, 0.25, 0.25)


def draw(root: Path, colors: dict[str, tuple[float, float, float]], per_class: int, spread: float) -> Path:
    """Noise around a color a class, as lossless files."""
    random = np.random.default_rng(0)
    for name, color in colors.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            tint = random.normal(color, spread / 3, 3)
            pixels = np.clip(random.normal(tint, spread, (40, 40, 3)), 0, 1)
            Image.fromarray((pixels * 255).astype("uint8")).save(root / name / f"{number:03d}.png")
    return root


@dataclass(frozen=True)
class Data:
    """A data set with a machine of its own to measure on."""

    place: Place
    root: Path
    session: Session

    def reading(self, file: Path, *, choice: str = "auto", default: str = "data") -> Preparation | None:
        plan = recipe(self.session.config, "teacher", "float32")
        spec = network_spec(self.session, plan.model_copy(update={"weights": str(file), "normalization": choice}))
        return preparation(self.session, spec, str(file), choice=choice, default=default, side="teacher")

    def val(self) -> tuple[Tensor, Tensor]:
        return pixels_of(self.session, "val")

    def accuracy(self, model: nn.Module) -> float:
        images, labels = self.val()
        with torch.no_grad():
            return (model.eval()(images).argmax(1) == labels).float().mean().item()


def opened(tmp: Path, root: Path, **given: object) -> Data:
    place = make_place(tmp / "place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_MLFLOW_HOME", str(place.home))
        config = resolve(DistillConfig, {"data": str(root), "tracking_uri": place.uri, **OPTIONS, **given})
        return Data(place, root, Session.open(config, Terminal(quiet=True)))


def pixels_of(session: Session, split: str) -> tuple[Tensor, Tensor]:
    places, margin = session.store.splits[split], (session.store.side - SIZE) // 2
    images = torch.from_numpy(session.store.images[places])[..., margin : margin + SIZE, margin : margin + SIZE]
    return images, torch.from_numpy(session.store.labels[places])


def trained(session: Session, view, steps: int = 150, labels=lambda labels: labels, net: nn.Module | None = None):
    """A network that was trained by hand on pixels prepared as ``view`` has them."""
    torch.manual_seed(0)
    net = net or make(len(session.store.classes))
    images, truth = pixels_of(session, "train")
    seen, truth = view(images.float()), labels(truth)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        loss = F.cross_entropy(net.train()(seen), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def normalized(mean, std, reverse: bool = False):
    def view(images: Tensor) -> Tensor:
        pixels = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        return pixels.flip(1) if reverse else pixels

    return view


def by_way(rows) -> dict[tuple[str, str], float]:
    """Accuracy by normalization and channels, with the classes in the data's order."""
    straight = [row for row in rows if row["class_order"] == "as the data's"]
    return {(row["normalization"], row["channels"]): row["accuracy"] for row in straight}


@pytest.fixture(scope="module")
def pale(tmp_path_factory) -> Data:
    """Pale images of two classes, mean 0.9 and std 0.07."""
    tmp = tmp_path_factory.mktemp("pale")
    colors = {"cold": (0.88, 0.9, 0.92), "warm": (0.92, 0.9, 0.88)}
    return opened(tmp, draw(tmp / "pale", colors, 150, 0.07))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Data:
    """Eleven classes with numbers for names, each of a color of its own."""
    tmp = tmp_path_factory.mktemp("numbered")
    random = np.random.default_rng(1)
    corners = [(r, g, b) for r in (0.2, 0.5, 0.8) for g in (0.2, 0.8) for b in (0.2, 0.8)]
    order = random.permutation(len(corners))
    colors = {str(number): corners[order[number]] for number in range(1, 12)}
    return opened(tmp, draw(tmp / "numbered", colors, 40, 0.06))


@pytest.fixture(scope="module")
def pale_teacher(pale) -> Path:
    file = pale.root.parent / "teacher.pth"
    torch.save(trained(pale.session, normalized(*IMAGENET)).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("imagenet", *IMAGENET),
        ("unit", (0.0,) * 3, (1.0,) * 3),
        ("symmetric", (0.5,) * 3, (0.5,) * 3),
        ("bytes", (0.0,) * 3, (1 / 255,) * 3),
        ("imagenet's mean on pixels of 0..255", IMAGENET_MEAN, (1 / 255,) * 3),
    ],
)
def test_the_normalization_a_file_was_trained_with_is_found(pale, tmp_path, name, mean, std):
    net = trained(pale.session, normalized(mean, std))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    right = (net(normalized(mean, std)(pale.val()[0].float())).argmax(1) == pale.val()[1]).float().mean().item()
    found = pale.reading(tmp_path / "w.pth")
    used = by_way(found.candidates)
    assert right > 0.85
    assert used[name, "rgb"] == pytest.approx(right)
    # Some are so near one another on these pixels that both are right.
    assert used[found.normalization, "rgb"] > right - 0.1
    assert found.channels == "rgb"
    (said,) = found.sentences
    assert f"with {found.normalization}" in said
    assert "--teacher-normalization" in said


def test_what_is_level_with_the_default_leaves_it(pale, tmp_path):
    net = trained(pale.session, normalized(pale.session.store.mean, pale.session.store.std))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found = pale.reading(tmp_path / "w.pth")
    assert (found.normalization, found.channels, found.rows) == ("data", "rgb", ())
    assert "data is kept" in found.sentences[0]
    # A network that knows nothing is taken as it is.
    torch.manual_seed(3)
    torch.save(make(2).state_dict(), tmp_path / "fresh.pth")
    fresh = pale.reading(tmp_path / "fresh.pth")
    assert (fresh.normalization, fresh.channels, fresh.rows) == ("data", "rgb", ())


def test_blue_green_red_is_folded_into_the_first_layer(numbered, tmp_path):
    net = trained(numbered.session, normalized(*IMAGENET, reverse=True))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    plan = recipe(numbered.session.config, "control", "float32")
    plan = plan.model_copy(update={"weights": str(tmp_path / "w.pth")})
    start = start_preparation(numbered.session, plan)
    assert start.channels == "bgr"
    assert "blue-green-red" in start.sentences[0]
    with torch.no_grad():
        expected = net(normalized(start.mean, start.std, reverse=True)(numbered.val()[0].float()))
        model = build_network(numbered.session, plan).eval()
        torch.testing.assert_close(model(numbered.val()[0]), expected, rtol=1e-3, atol=1e-3)
    assert numbered.accuracy(model) > 0.85


def test_classes_in_natural_order_are_put_into_text_order_and_it_is_said(numbered, tmp_path):
    classes = list(numbered.session.store.classes)
    assert classes[:4] == ["1", "10", "11", "2"]
    rows = torch.tensor([sorted(classes, key=int).index(name) for name in classes])
    net = trained(numbered.session, normalized(*IMAGENET), labels=lambda truth: rows[truth])
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.ckpt")
    found = numbered.reading(tmp_path / "w.ckpt")
    assert found.rows == tuple(rows.tolist())
    assert "natural order (2 before 10)" in found.sentences[0]
    assert len(found.sentences) == 1


def test_another_order_of_classes_is_named_and_not_mended(numbered, tmp_path):
    shuffled = torch.from_numpy(np.random.default_rng(5).permutation(11))
    net = trained(numbered.session, normalized(*IMAGENET), labels=lambda truth: shuffled[truth])
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found = numbered.reading(tmp_path / "w.pth")
    assert found.rows == ()
    assert found.warned
    classes, alarm = numbered.session.store.classes, found.sentences[-1]
    k = next(k for k in range(11) if shuffled[k] != k and f"images of {classes[k]!r}" in alarm)
    assert f"images of {classes[k]!r} are called {classes[shuffled[k]]!r}" in alarm
    assert "and 6 more" in alarm or "and 7 more" in alarm or "and 5 more" in alarm


def test_two_classes_that_are_exchanged_among_many_are_named(numbered, tmp_path):
    exchanged = torch.arange(11)
    exchanged[[4, 7]] = torch.tensor([7, 4])
    net = trained(numbered.session, normalized(*IMAGENET), labels=lambda truth: exchanged[truth])
    torch.save(net.state_dict(), tmp_path / "w.pth")
    classes = numbered.session.store.classes
    alarm = numbered.reading(tmp_path / "w.pth").sentences[-1]
    assert f"images of {classes[4]!r} are called {classes[7]!r}" in alarm
    assert f"images of {classes[7]!r} are called {classes[4]!r}" in alarm
    assert "more" not in alarm


def test_an_option_or_the_file_itself_decides_over_the_measurement(pale, pale_teacher, tmp_path):
    asked = pale.reading(pale_teacher, choice="data")
    assert (asked.normalization, asked.sentences) == ("data", ())
    torch.save({"net": torch.load(pale_teacher), "mean": [0.5] * 3, "std": [0.25] * 3}, tmp_path / "w.pth")
    stored = pale.reading(tmp_path / "w.pth")
    assert (stored.mean, stored.std, stored.normalization) == ((0.5,) * 3, (0.25,) * 3, "its own")


def test_a_fine_tuning_start_is_measured_where_its_classifier_fits(pale, pale_teacher, tmp_path):
    session = pale.session
    plan = recipe(session.config, "control", "float32").model_copy(update={"weights": str(pale_teacher)})
    model = build_network(session, plan)
    assert (model.spec.mean, model.spec.std) == IMAGENET
    assert pale.accuracy(model) > 0.9
    # How the file is used is a part of the training's identity.
    forced = plan.model_copy(update={"normalization": "data"})
    assert training_fingerprint(session, plan) != training_fingerprint(session, forced)
    torch.save(make(7).state_dict(), tmp_path / "seven.pth")
    other = plan.model_copy(update={"weights": str(tmp_path / "seven.pth")})
    assert build_network(session, other).spec.mean == session.store.mean
    start = start_preparation(session, other)
    assert start.candidates == ()
    assert "does not say how its pixels were normalized: data is used (--normalization" in start.sentences[0]


def test_measuring_reads_validation_alone_and_is_kept(pale, pale_teacher, monkeypatch):
    seen: list[np.ndarray] = []
    load = measuring.load
    monkeypatch.setattr(
        measuring, "load", lambda store, places, device: (seen.append(places), load(store, places, device))[1]
    )
    fresh = Session(**{**vars(pale.session), "preparations": {}, "home": pale.place.path / "another"})
    again = Data(pale.place, pale.root, fresh)
    first = again.reading(pale_teacher)
    assert set(np.concatenate(seen)) <= set(pale.session.store.splits["val"])
    count = len(seen)
    fresh.preparations.clear()
    assert again.reading(pale_teacher) == first
    assert len(seen) == count


def test_a_pale_teacher_from_elsewhere_is_right_without_an_option(pale, pale_teacher, monkeypatch, capfd):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(pale.place.home))
    given = {"data": str(pale.root), "tracking_uri": pale.place.uri, "teacher": str(pale_teacher), "control": False}
    config = resolve(DistillConfig, {**given, **OPTIONS})
    result = distill(config, terminal=Terminal())
    assert result.teacher["val"]["accuracy"] > 0.9
    assert result.teacher["test"]["accuracy"] > 0.8
    assert "teacher.pth does not say how its pixels were normalized" in capfd.readouterr().err
    client = connect(pale.place.uri)
    run = read_run(client, result.run_id)
    assert run.tags["kd.teacher_normalization"] == "imagenet"
    assert run.tags["kd.teacher_near_chance"] == "false"
    table = json.loads(download(client, result.run_id, "teacher_weights.json", pale.place.path).read_text())
    measured = by_way(table[0]["candidates"])
    assert measured["imagenet", "rgb"] > 0.9 > 0.7 > measured["data", "rgb"]
    assert "imagenet is used" in download(client, result.run_id, "report.html", pale.place.path).read_text()
    # Against its own mean and std it is near chance, which is said without a baseline too.
    forced = {**given, **OPTIONS, "teacher_normalization": "data", "require_strong_teacher": True}
    with pytest.raises(InputError, match=r"The teacher is weak: .* is right on 5"):
        distill(resolve(DistillConfig, forced))
    newest = find_runs(client, tags={}, role="student")[0]
    assert newest.run_id != result.run_id
    assert newest.tags["kd.teacher_near_chance"] == "true"


def test_teacher_and_student_have_a_normalization_each():
    given = {"data": "photos", "normalization": "unit", "teacher_normalization": "symmetric"}
    config = resolve(DistillConfig, given)
    assert recipe(config, "teacher", "float32").normalization == "symmetric"
    assert {recipe(config, role, "float32").normalization for role in ("student", "control")} == {"unit"}
    alike = resolve(DistillConfig, {"data": "photos", "normalization": "bytes"})
    assert recipe(alike, "teacher", "float32").normalization == "bytes"
    assert resolve(TeacherConfig, {"data": "photos"}).teacher_normalization is None
    assert "teacher_normalization" not in StudentConfig.model_fields


@pytest.mark.fault("a teacher file of another network", "one sentence, and no word on its normalization before it")
def test_a_file_that_does_not_fit_is_refused_before_anything_is_said_of_it(pale, tmp_path, capfd):
    torch.save(make(7).state_dict(), tmp_path / "w.pth")
    loud = Session(**{**vars(pale.session), "terminal": Terminal()})
    plan = recipe(pale.session.config, "teacher", "float32")
    spec = network_spec(loud, plan)
    with pytest.raises(InputError, match=r"w\.pth do not fit: shapes differ in 5\.weight"):
        preparation(loud, spec, str(tmp_path / "w.pth"), choice="auto", default="data", side="teacher", whole=True)
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth do not fit"):
        preparation(loud, spec, str(tmp_path / "other.pth"), choice="auto", default="data", side="teacher")
    assert capfd.readouterr().err == ""


class AfterTheHead(nn.Module):
    """Its logits are no plain rows of its last layer, and its first layer does not see the image as it is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = make(classes)
        self.register_buffer("gains", torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images * self.gains).cumsum(1)


def test_what_cannot_be_turned_exactly_is_left_as_it_was(pale, numbered):
    plain = recipe(numbered.session.config, "control", "float32")
    model = build_network(numbered.session, plain)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [*range(1, 11), 0]
    assert turn_channels(model, back=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sort_head(model, rows)
    assert torch.equal(model.head.weight, before["body.5.weight"][rows])
    assert torch.equal(model.head.bias, before["body.5.bias"][rows])
    odd = build_network(numbered.session, plain.model_copy(update={"architecture": f"{__name__}:after_the_head"}))
    before = {name: value.clone() for name, value in odd.state_dict().items()}
    assert not turn_channels(odd)
    assert not sort_head(odd, rows)
    assert all(torch.equal(value, before[name]) for name, value in odd.state_dict().items())


def after_the_head(num_classes: int) -> nn.Module:
    return AfterTheHead(num_classes)
