"""Workloads: a model, data and the settings that a paper trained them with."""
