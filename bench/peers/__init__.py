"""The loaders that are measured: ours, and each peer as its users write it, one per file.

All do the same work. They decode each sample, crop it `num_views` times to size_px, and put uint8 on the
device. The crop is torchvision's RandomResizedCrop (area 0.08 to 1, ratio 3/4 to 4/3). Imports of their
libraries stand in functions, because the process of one loader must not import another's.
"""

from bench.peers import dali, dataloader, ffcv, spdl, webdataset
from bench.peers.files import has_raw
from bench.peers.peer import Peer, Work

PEERS: dict[str, Peer] = {
    "ffcv_loader": ffcv.PEER,
    "dali_reader": dali.PEER,
    "dataloader": dataloader.PEER,
    "webdataset": webdataset.PEER,
    "spdl_cv2": spdl.WITH_CV2,
    "spdl_ffmpeg": spdl.WITH_FFMPEG,
}
# Beside them bench/loaders.py measures DALI's reader with whole images.
ALL = PEERS | {"dali_whole": dali.WHOLE}
TITLES = {kind: peer.title for kind, peer in ALL.items()}


def why_missing(kind: str, data: str) -> str | None:
    """Return the reason why a peer cannot be measured on a dataset file, or None if it can."""
    from fastpsl.pipelines.beton.reader import Beton

    peer = ALL[kind]
    if reason := peer.reason():
        return reason
    with Beton(data) as opened:
        if kind == "ffcv_loader" and len(opened.paths) > 1:
            return f"it reads one file, and these are {len(opened.paths)} shards"
        if peer.needs_files and has_raw(opened):
            return "it reads JPEGs, and these are raw images"
    return None


__all__ = ["ALL", "PEERS", "TITLES", "Peer", "Work", "why_missing"]
