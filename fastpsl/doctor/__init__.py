"""The diagnosis of a machine: times each part of a recipe, names the slowest and proposes changes."""
