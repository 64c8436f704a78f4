"""The CPU cores that a process may use."""

import os


def cores() -> int:
    """That this process may use: by affinity and, in a container, by its quota; 1 at least."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota() -> float | None:
    """Cores' worth of time that a container is given; None without a limit."""
    for path, read in (
        ("/sys/fs/cgroup/cpu.max", lambda text: text.split()),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", lambda text: (text.strip(), "100000")),
    ):
        try:
            with open(path) as file:
                quota, period = read(file.read())
        except (OSError, ValueError):
            continue
        return None if quota in ("max", "-1") else float(quota) / float(period)
    return None
