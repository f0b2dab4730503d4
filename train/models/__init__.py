"""Models of the workloads, one family per module, after the paper in its first lines.

Imports torch only. Start reading with `mlp`, then `resnet`.
"""
