"""Measurement of GPU memory."""

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of `peak_memory`. It does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak of torch's tensors since the last reset, and the bytes in use on the device now.

    The latter include torch's cache, which does not shrink, the decoder, libraries and other processes. On
    the CPU, the dict is empty.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"peak_allocated_bytes": peak, "device_used_bytes": total - free}


def memory_held(device: torch.device) -> int | None:
    """Return the bytes that torch holds on the device, with its cache; None on the CPU.

    It is torch's own count, for which the device is not asked. Decoders and libraries hold more.
    """
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None
