"""fused_cpu."""
