"""`fastpsl permutations`: the jigsaw task's permutations, as a file."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Permutations:
    """Make a set of jigsaw permutations far from each other: integers [max(counts), pieces] from 0, in nested
    prefixes."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The .npy file to write."""
    num_pieces: Annotated[int, tyro.conf.arg(metavar="NUM")] = 9
    """Tiles of a puzzle."""
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUM...")] = (500, 1000, 2000)
    """Sizes of the nested sets, rising: the first 500 rows are the first set, and so on."""
    overwrite: bool = False
    """Replace FILE.npy, which is refused otherwise."""

    def run(self) -> None:
        """Write the file and print the distances of each nested set.

        Raises:
            ValueError: The counts do not rise, the file exists, or there are too few permutations.
        """
        import numpy as np

        from fastpsl.files.atomic import output_errors, write_atomically
        from fastpsl.kernels.permutations import hamming_bound, mean_hamming, minimum_hamming, permutation_set

        if any(one >= other for one, other in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError(
                f"--counts {' '.join(map(str, self.counts))}: each set begins with the one before it; "
                "give rising numbers"
            )
        if self.out.exists() and not self.overwrite:
            raise ValueError(
                f"{self.out}: exists already; remove it, give --overwrite, or choose another name"
            )
        permutations = permutation_set(self.num_pieces, self.counts).permutations
        data = io.BytesIO()
        np.save(data, permutations.astype(np.int64))
        with output_errors(self.out):
            write_atomically(self.out, data.getvalue())
        print(f"{self.out}: {len(permutations):,} permutations of {self.num_pieces} pieces")
        print("  permutations   minimum distance   mean distance   bound of the mean")
        for count in self.counts:
            nested = permutations[:count]
            bound = hamming_bound(count, self.num_pieces)
            minimum, mean = minimum_hamming(nested), mean_hamming(nested)
            print(f"  {count:>12,}   {minimum:>16}   {mean:>13.4f}   {bound:>17.4f}")
