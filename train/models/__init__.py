"""Models of the workloads, one family per module, which cites its paper in the first lines.

Imports torch only. Start reading with `mlp`, then `resnet`.
"""
