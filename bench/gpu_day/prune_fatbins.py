"""A tool that removes the GPU code of every architecture but one from shared libraries.

    python prune_fatbins.py 90 FILE...        in place; prints bytes of GPU code kept and zeroed

The files keep their size and layout, and compress better. Each fat binary keeps its place; the entries of
that architecture move to its front, and the rest becomes zeros. cuobjdump lists and disassembles the result
as before. It cannot run on a device of another architecture.
"""

import mmap
import re
import struct
import sys

MAGIC = struct.pack("<I", 0xBA55ED50)


def prune(path: str, arch: int) -> tuple[int, int]:
    """Prune one file in place, and return the bytes of GPU code that are kept and zeroed."""
    kept_bytes = zeroed_bytes = 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for match in re.finditer(re.escape(MAGIC), data):
            at = match.start()
            version, header, size = struct.unpack_from("<HHQ", data, at + 4)
            if version != 1 or header != 16 or at + header + size > len(data):
                continue  # bytes that only look like a header
            entry, end = at + header, at + header + size
            parts: list[tuple[int, int, int, int]] = []  # (kind, architecture, offset, bytes)
            while entry + 32 <= end:
                kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, entry)
                (its_arch,) = struct.unpack_from("<I", data, entry + 28)
                if kind not in (1, 2, 16, 64) or entry_header < 32 or entry + entry_header + payload > end:
                    parts = []
                    break
                parts.append((kind, its_arch, entry, entry_header + payload))
                entry += entry_header + payload
            if not any(kind == 2 and its_arch == arch for kind, its_arch, _, _ in parts):
                kept_bytes += size  # no code for this device: leave all of it
                continue
            kept_entries = bytearray()
            for kind, its_arch, start, length in parts:
                if kind == 2 and its_arch == arch:
                    kept_entries += data[start : start + length]
            kept_bytes, zeroed_bytes = kept_bytes + len(kept_entries), zeroed_bytes + size - len(kept_entries)
            data[at + header : end] = bytes(kept_entries) + bytes(size - len(kept_entries))
            struct.pack_into("<Q", data, at + 8, len(kept_entries))
    return kept_bytes, zeroed_bytes


if __name__ == "__main__":
    for name in sys.argv[2:]:
        kept_bytes, zeroed_bytes = prune(name, int(sys.argv[1]))
        print(f"{name}: kept {kept_bytes}, zeroed {zeroed_bytes}")
