"""Models of the workloads, one family per module; its first lines cite the paper.

Imports torch only. Start reading with `mlp`, then `resnet`.
"""
