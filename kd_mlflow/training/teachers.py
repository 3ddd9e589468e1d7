"""Where a teacher's outputs come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Distiller
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.inference import Backend, FastForward, freeze
from kd_mlflow.models.taps import Outputs, Tapped
from kd_mlflow.training.cache import CacheFolder, EpochWriter, check_records, check_same


class LiveTeacher:
    """A forward pass of the teacher, in eval mode and without gradient, whatever happens around it."""

    def __init__(
        self, model: Classifier, needs: frozenset[str], device: torch.device, backend: Backend = "eager"
    ) -> None:
        self.tapped = Tapped(freeze(model).to(device), needs)
        self.forward = FastForward(self.tapped, backend)

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs for ``batch.images``."""
        return self.forward(batch.images)


class CachedTeacher:
    """A teacher's outputs out of its cache, which the first to come through an epoch fills.

    Also what a live pass gives goes through the records' precision, so that a training ends in the same
    weights whether it found the cache full, filled it, or came while another process filled it. The first
    batch that is taken from the cache is held against a live pass.

    Parameters
    ----------
    folder:
        Makes the cache's folder, at the first batch.
    places:
        ``[N]``: the training split's places in the manifest, ascending; a record each.
    samples:
        How many of them the batches of an epoch hold; None for a source that reads what is there and writes nothing.
    view:
        The images at some places as an epoch shows them, for samples that no batch of it holds.
    """

    def __init__(
        self,
        live: LiveTeacher,
        folder: Callable[[], CacheFolder],
        places: np.ndarray,
        samples: int | None,
        view: Callable[[np.ndarray, int], Batch],
    ) -> None:
        self.live = live
        self.make_folder = folder
        self.places = places
        self.samples = samples
        self.view = view
        self.folder: CacheFolder | None = None
        self.epoch = 0
        self.seen = 0
        self.kept: np.ndarray | None = None
        self.writer: EpochWriter | None = None
        self.verified = False

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs for ``batch``, in float32."""
        if self.folder is None:
            self.folder = self.make_folder()
        if batch.epoch != self.epoch:
            self._turn_to(batch.epoch)
        index = batch.places()
        self.seen += len(index)
        rows = np.searchsorted(self.places, index)
        if self.kept is not None:
            records = self.kept[rows]
            if not self.verified:
                check_same(self._ask(batch), records, self.folder.file(self.epoch), index)
                self.verified = True
        else:
            records = self._ask(batch)
            if self.writer is not None:
                self._write(rows, records)
        return self.folder.codec.decode(records, batch.images.device)

    def _turn_to(self, epoch: int) -> None:
        if self.writer is not None:
            self.writer.abandon()
        self.epoch, self.seen = epoch, 0
        self.kept = self.folder.read(epoch)
        self.writer = None if self.kept is not None or self.samples is None else self.folder.begin(epoch)

    def _write(self, rows: np.ndarray, records: np.ndarray) -> None:
        self.writer.put(rows, records)
        if self.seen < self.samples:
            return
        if len(missing := self.writer.missing):
            self.writer.put(missing, self._ask(self.view(self.places[missing], self.epoch)))
        self.writer.commit()
        self.writer = None

    def _ask(self, batch: Batch) -> np.ndarray:
        records = self.folder.codec.encode(self.live(batch))
        check_records(records)
        return records


def why_live(distiller: Distiller) -> str:
    """Why a method cannot do with kept outputs of its teacher, as the end of a sentence; empty if it can."""
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    if needs - {"logits", "pooled"}:
        return "needs maps of the teacher's stages"
    if distiller.views > 1:
        return "shows the teacher several views of each image"
    if type(distiller).transform_batch is not Distiller.transform_batch:
        return "shows the teacher mixed images"
    return ""
