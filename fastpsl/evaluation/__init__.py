"""What frozen features are worth: probes, kNN, retrieval, t-SNE."""
