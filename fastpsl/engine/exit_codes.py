"""The exit codes of recipes and of `fastpsl`. This module does not import torch, which is slow."""

EXIT_FINISHED = 0
EXIT_CRASHED = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: the same command goes on
EXIT_INTERRUPTED = 130
# What is printed where a script is interrupted before it has something to keep.
INTERRUPTED = "interrupted; the same command starts again, or goes on where it had come to"
