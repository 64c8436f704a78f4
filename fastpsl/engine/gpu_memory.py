"""GPU memory: what a stage took at most, and what to lower when there was too little."""

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak anew from here; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Since the last reset: bytes that torch's tensors took at most, and bytes in use on the whole device now: torch's cache, which does
    not shrink, decoder, libraries and other processes. Nothing on the CPU.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"peak_allocated_bytes": peak, "device_used_bytes": total - free}


def gibibytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"
