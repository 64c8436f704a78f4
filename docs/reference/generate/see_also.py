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
}


def links(paths: Sequence[str]) -> str:
    """Return links to pages, by their paths in docs/, from a page that is two folders below docs/."""
    lines = []
    for path in paths:
        *folder, page = path.removesuffix(".md").removesuffix("/index").split("/")
        kind = KINDS["/".join(folder)]
        lines.append(f"- {kind}: [{TITLES.get(page, page.replace('_', ' '))}](../../{path})")
    return "\n".join(lines)
