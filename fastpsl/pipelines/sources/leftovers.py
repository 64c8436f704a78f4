"""Names of what other programs leave beside images: neither a class nor an image.

Every name that begins with a dot is hidden, and left out as well: ._x.jpg and .DS_Store of macOS,
.AppleDouble, .Trash-1000, .thumbnails, .@__thumb, .snapshot, .stversions, .git, .dvc, .ipynb_checkpoints.
"""

# In lower case, because Windows and the file systems of NAS boxes do not tell the cases apart.
_NAMES = frozenset(
    (
        "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS: zip, Finder, shared disks
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler",  # Windows
        "system volume information", "found.000", "lost+found", "lost.dir",  # file systems after a repair
        "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", "~snapshot",  # Synology, NetApp
        "@recycle", "@recently-snapshot", "@transcode",  # QNAP
        "canonmsc", "nikon001.dsc",  # cameras
        "__pycache__",  # Python
    )
)  # fmt: skip


def is_leftover(name: str) -> bool:
    """Return whether a file or a folder of this name is hidden, or left by another program."""
    return name.startswith(".") or name.lower() in _NAMES


def is_in_leftovers(path: str) -> bool:
    """Return whether a path that a list names is one of a leftover.

    It may lead through hidden folders, such as ~/.cache, but not through __MACOSX.
    """
    *folders, name = path.lower().split("/")
    return is_leftover(name) or not _NAMES.isdisjoint(folders)
