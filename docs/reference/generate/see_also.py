"""Link each page to further reading."""

from collections.abc import Sequence

# A page's folder → how its kind is called.
KINDS = {
    "": "Overview",
    "explanation": "Explanation",
    "get_started": "Get started",
    "how_to": "How-to",
    "reference": "Reference",
    "methods": "Method",
    "evaluate": "Evaluation",
}
TITLES = {
    "psl": "PSL", "uic": "UIC", "sslpp": "SSL++", "knn": "nearest neighbours", "svm": "SVMs",
    "bottleneck": "find the bottleneck", "others_weights": "use others' weights", "few_shot": "few-shot",
    "pack_imagenet": "pack ImageNet",
}  # fmt: skip
# Further reading, by the words behind `fastpsl`.
SEE: dict[str, tuple[str, ...]] = {
    "train": ("methods/index.md", "how_to/several_gpus.md"),
    "eval": ("evaluate/index.md",),
    "launch": ("how_to/slurm.md",),
    "launch slurm": ("how_to/slurm.md",),
    "recipes copy": ("how_to/add_a_task.md",),
    "data write": ("how_to/pack_a_dataset.md", "how_to/pack_imagenet.md", "reference/file_formats.md"),
    "data append": ("how_to/pack_a_dataset.md",),
    "data verify": ("how_to/bad_images.md",),
    "data info": ("reference/file_formats.md",),
    "features": ("evaluate/retrieval.md", "evaluate/knn.md"),
    "retrieve": ("evaluate/retrieval.md",),
    "tsne": ("evaluate/retrieval.md",),
    "clusters": ("evaluate/clusters.md",),
    "labels": ("evaluate/clusters.md", "methods/sslpp.md"),
    "export": ("how_to/export.md", "how_to/others_weights.md"),
    "table": ("evaluate/tables.md",),
    "doctor": ("how_to/bottleneck.md",),
    "permutations": ("methods/jigsaw.md",),
}


def links(paths: Sequence[str]) -> str:
    """Return links to pages, by their paths in docs/, from a page that is two folders below docs/."""
    lines = []
    for path in paths:
        *folder, page = path.removesuffix(".md").removesuffix("/index").split("/")
        kind = KINDS["/".join(folder)]
        lines.append(f"- {kind}: [{TITLES.get(page, page.replace('_', ' '))}](../../{path})")
    return "\n".join(lines)
