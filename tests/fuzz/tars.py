"""Whatever bytes are given as a ``.tar`` of images: its items, or one InputError.

For a fuzzer: ``atheris.Setup(sys.argv, one_input); atheris.Fuzz()``.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_mlflow.data.archives import TarSource
from kd_mlflow.errors import InputError
from tests.fuzz.sentences import one_sentence


def one_input(data: bytes) -> bool:
    """List the archive, and read every item. Whether it is an archive of images."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "photos.tar"
        path.write_bytes(data)
        source = TarSource(path)
        try:
            items = source.arrangement().items
        except InputError as error:
            one_sentence(error)
            return False
        for place, item in enumerate(items):
            assert item.entry.problem or len(source.read(place)) == item.entry.size
    return True


def seeds() -> list[bytes]:
    """Two classes in each of tar's forms, with names that need the extended headers."""
    return [_packed(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _packed(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        long = "n" * 120 if form != tarfile.USTAR_FORMAT else "n"
        for name in ("cat/1.png", "dog/2.png", f"dog/{long}.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return buffer.getvalue()
