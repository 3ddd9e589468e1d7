"""Files and folders that systems, storage boxes and other programs keep among a person's pictures."""

from __future__ import annotations

import re
from collections import Counter

from kd_mlflow.data.kinds import tally

_CLUTTER = frozenset({
    # Synology, QNAP, NetApp, Buffalo
    "@eadir", "eadir_tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@synoresource",
    "@synoeastream", "@sharebin", "@sharesnap", "~snapshot", "trashbox",
    # Windows
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db",
    "desktop.ini", "autorun.inf", "$extend", "config.msi", "msocache",
    # macOS
    "__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "icon\r", "icon\uf00d",
    "desktop db", "desktop df", "resource.frk",
    # Linux, Android
    "lost+found", "lost.dir",
    # programs: Picasa, ZoomBrowser, Paint Shop Pro, Bridge, digiKam, Capture One, Python
    "picasa.ini", "zbthumbnail.info", "pspbrwse.jbf", "bridgecache", "bridgecachet", "bridgesort", "digikam4.db",
    "thumbnails-digikam.db", "recognition.db", "captureone", "_gsdata_", "__pycache__",
})  # fmt: skip
_CLUTTER_STARTS = ("._", ".trash-", "~$", "synophoto_", "synofile_", "synoindex_", "synovideo_", "synoaudio_")
_CLUTTER_ENDS = ("~", ".lrdata", ".lrcat", ".lrprev", "@synoeastream", "@synoresource", ":zone.identifier")
_CLUTTER_PATTERN = re.compile(
    r"found\.\d{3}\Z|thumbs ?\(\d+\)\.db\Z|thumbs\.db:|(?:thumb|icon)cache.*\.db\Z|.*:(?:afp_|com\.apple\.)", re.DOTALL
)


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system, a storage box or another program, not to the data."""
    folded = name.casefold()
    return (
        folded in _CLUTTER
        or folded.startswith((".", *_CLUTTER_STARTS))
        or folded.endswith(_CLUTTER_ENDS)
        or _CLUTTER_PATTERN.match(folded) is not None
    )


def clutter_label(name: str) -> str:
    """What clutter of this name is counted as: its name, or the part that all names of its kind share."""
    folded = name.casefold()
    start = next((start for start in _CLUTTER_STARTS if folded.startswith(start)), "")
    end = next((end for end in _CLUTTER_ENDS if folded.endswith(end)), "")
    return f"{start}*" if start else f"*{end}" if end else name


def left_out(what: str, clutter: Counter[str]) -> str:
    """Say once what clutter was left out of a data set; empty if there is none."""
    count = clutter.total()
    if not count:
        return ""
    entries = "1 file or folder" if count == 1 else f"{count} files and folders"
    return f"{what}: {entries} of a system or another program left out: {tally(clutter)}."
