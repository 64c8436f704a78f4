"""What is measured in a process of its own: ours, and each peer as its users write it, in files by library.

All loaders do the same work. They decode each sample, crop it `num_views` times to size_px, and put uint8 on
the device. The crop is torchvision's RandomResizedCrop (area 0.08 to 1, ratio 3/4 to 4/3). FLOATS holds
those of float32 batches: each crop is flipped at random and normalised, too. TRAINING holds what trains, from
the photos to the optimiser's step. Imports of their libraries stand in functions, because the process of one
must not import another's.
"""

from bench.peers import dali, ffcv, lightly, ours, pil, spdl, torch_loop, turboloader
from bench.peers.peer import LOOPS, PACKED, Peer, Reads, Work, has_raw

PEERS: dict[str, Peer] = {
    "ffcv_loader": ffcv.PEER, "dali_reader": dali.PEER, "dataloader": pil.DATALOADER,
    "webdataset": pil.WEBDATASET, "spdl_cv2": spdl.WITH_CV2, "spdl_ffmpeg": spdl.WITH_FFMPEG,
}  # fmt: skip
FLOATS: dict[str, Peer] = {kind: peer for kind, peer in PEERS.items() if kind != "dataloader"} | {
    "image_folder": pil.IMAGE_FOLDER,
    "turboloader": turboloader.PEER,
    "turboloader_antialias": turboloader.ANTIALIAS,
}
# Beside them bench/loaders.py measures DALI's reader with whole images.
ALL = PEERS | FLOATS | {"dali_whole": dali.WHOLE}
TRAINING = {
    "training": ours.TRAINING, "lightly": lightly.PEER, "torch_loop": torch_loop.PEER,
    "dali_resnet50": dali.RESNET50,
}  # fmt: skip
EVERY = ALL | TRAINING
TITLES = {kind: peer.title for kind, peer in ALL.items()}


def why_missing(kind: str, data: str) -> str | None:
    """Return the reason why a peer cannot be measured on a dataset file, or None if it can."""
    from fastpsl.pipelines.beton.reader import Beton

    peer = EVERY[kind]
    if reason := peer.reason():
        return reason
    with Beton(data) as opened:
        if kind == "ffcv_loader" and len(opened.paths) > 1:
            return f"it reads one file, and these are {len(opened.paths)} shards"
        if peer.reads != "dataset file" and has_raw(opened):
            return "it reads JPEGs, and these are raw images"
    return None


def reads(work: Work) -> Reads:
    """Return what a loader reads."""
    if work.from_folder:
        return "folder"
    return EVERY[work.kind].reads if work.kind in EVERY else "dataset file"


__all__ = [
    "ALL", "EVERY", "FLOATS", "LOOPS", "PACKED", "PEERS", "TITLES", "TRAINING", "Peer", "Work", "reads",
    "why_missing",
]  # fmt: skip
