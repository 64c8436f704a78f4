"""Names of what other programs leave beside images: neither a class nor an image.

Every name that begins with a dot is hidden, and left out as well: ._x.jpg and .DS_Store of macOS,
.AppleDouble, .Trash-1000, .thumbnails, .@__thumb, .snapshot, .stversions, .git, .dvc, .ipynb_checkpoints,
.dropbox.cache, .picasaoriginals, .dtrash.
"""

import re
from functools import lru_cache

# In lower case, because Windows and the file systems of NAS boxes do not tell the cases apart.
_NAMES = frozenset(
    (
        "__macosx", "icon\r", "network trash folder", "temporary items", "desktop db", "desktop df",
        "thevolumesettingsfolder", "thefindbycontentfolder", "resource.frk", "finder.dat",
        "ipod photo cache",  # macOS: zip, Finder, shared disks
        "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        "$recycle.bin", "recycler", "recycled", "system volume information", "wpsystem",
        "msdownld.tmp",  # Windows
        "lost+found", "lost.dir",  # file systems after a repair; found.000 is below
        "#recycle", "#snapshot", "~snapshot",  # Synology, NetApp; those with @ are below
        "network recycle bin", "canonmsc", "eosmisc", "nikon001.dsc", "nksc_param",  # QNAP, cameras
        "captureone", "[originals]", "[developed]", "adobe bridge cache",  # Capture One, ACDSee, Bridge
        "_gsdata_", "pax_global_header", "__pycache__",  # GoodSync, git archive, Python
    )
)  # fmt: skip
_FAMILIES = re.compile(
    r"@?paxheaders?(\..*)?|@longlink|globalhead\.\d.*"  # tar
    r"|found\.\d{3}"  # chkdsk
    # Not every name with an @: a class may be somebody's account.
    r"|@(eadir|tmp|app(store|data|conf|home|share|temp)|autoupdate|cloudsync|database|docker|download"
    r"|img_bkp_cache|iscsi|maillog|mailscanner|postfix|quarantine|s2s|share(bin|snap)|spool|ssdcache"
    r"|surveillance|syno.*|usbcopy|userpreference|webdav)"  # Synology
    r"|@(recycle|recently-snapshot|transcode|__thumb|__qini|qmariadb)|_nas_recycle_.*"  # QNAP, Thecus
    r"|:2e.*"  # a dot as Netatalk writes it
)
# Lightroom, Windows in Linux, Synology.
_ENDINGS = (".lrdata", ".lrcat-data", ":zone.identifier", "@synoeastream", "@synoresource")


def is_leftover(name: str) -> bool:
    """Return whether a file or a folder of this name is hidden, or left by another program."""
    return name.startswith(".") or _is_named(name.lower())


def is_in_leftovers(path: str) -> bool:
    """Return whether a path that a list names is one of a leftover.

    It may lead through hidden folders, such as ~/.cache, but not through __MACOSX.
    """
    folder, _, name = path.lower().rpartition("/")
    return is_leftover(name) or _leads_through_one(folder)


@lru_cache(1024)  # because millions of images lie in few folders
def _leads_through_one(folder: str) -> bool:
    return any(map(_is_named, folder.split("/")))


def _is_named(name: str) -> bool:
    return name in _NAMES or name.endswith(_ENDINGS) or _FAMILIES.fullmatch(name) is not None
