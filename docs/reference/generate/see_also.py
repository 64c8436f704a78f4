"""Link each page to further reading."""

from collections.abc import Sequence

from fastpsl.commands.train import Eval, Train

# A page's folder → how its kind is called.
KINDS = {
    "explanation": "Explanation",
    "get_started": "Get started",
    "how_to": "How-to",
    "how_to/evaluate": "How-to",
    "reference": "Reference",
    "reference/protocols": "Protocol",
}
TITLES = {
    "psl": "PSL", "uic": "UIC", "sslpp": "SSL++", "knn": "nearest neighbours", "svm": "SVMs",
    "bottleneck": "find the bottleneck", "others_weights": "use others' weights", "few_shot": "few-shot",
    "pack_imagenet": "pack ImageNet",
}  # fmt: skip
PSL = ("explanation/psl.md", "reference/pretext_tasks.md", "reference/backbones.md")
UIC = ("explanation/uic.md", "reference/backbones.md")
SSLPP = ("explanation/sslpp.md", "reference/backbones.md")
FEATURES = ("how_to/evaluate/index.md",)
# Further reading, by the words behind `fastpsl`.
SEE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("train jigsaw", "train rotation", "train simclr", "train mocov2"), PSL),
    **dict.fromkeys(("train uic", "train uic-alexnet", "train uic-cifar10", "train deepcluster"), UIC),
    **dict.fromkeys([f"train {name}" for name in Train.names if name.startswith("sslpp")], SSLPP),
    "train iic": SSLPP,
    "train supervised": ("how_to/evaluate/supervised.md",),
    **{
        f"eval {name}": (f"how_to/evaluate/{page}.md", f"reference/protocols/{page}.md")
        for name, page in zip(
            Eval.names,
            (
                "linear",
                "blocks",
                "few_labels",
                "knn",
                "svm",
                "few_shot",
                "detection",
                "segmentation",
                "multilabel",
            ),
            strict=True,
        )
    },
    "train": ("get_started/choosing_a_recipe.md", "how_to/several_gpus.md"),
    "eval": FEATURES,
    "launch": ("how_to/slurm.md",),
    "launch slurm": ("how_to/slurm.md",),
    "recipes copy": ("how_to/add_a_task.md",),
    "data write": ("how_to/pack_a_dataset.md", "how_to/pack_imagenet.md", "reference/file_formats.md"),
    "data append": ("how_to/pack_a_dataset.md",),
    "data verify": ("how_to/bad_images.md",),
    "data info": ("reference/file_formats.md",),
    "features": ("how_to/evaluate/retrieval.md", "how_to/evaluate/knn.md"),
    "retrieve": ("how_to/evaluate/retrieval.md",),
    "tsne": ("how_to/evaluate/retrieval.md",),
    "clusters": ("how_to/evaluate/clusters.md",),
    "labels": ("how_to/evaluate/clusters.md", "explanation/sslpp.md"),
    "export": ("how_to/export.md", "how_to/others_weights.md"),
    "table": ("how_to/reproduce_a_table.md", "reference/tables.md"),
    "doctor": ("how_to/bottleneck.md",),
    "permutations": ("reference/pretext_tasks.md",),
}


def links(paths: Sequence[str]) -> str:
    """Return links to pages, by their paths in docs/, from a page that is two folders below docs/."""
    lines = []
    for path in paths:
        *folder, page = path.removesuffix(".md").removesuffix("/index").split("/")
        kind = KINDS["/".join(folder)]
        lines.append(f"- {kind}: [{TITLES.get(page, page.replace('_', ' '))}](../../{path})")
    return "\n".join(lines)
