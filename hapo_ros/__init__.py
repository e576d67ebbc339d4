"""Robots that learn from being corrected: takeover, labels, preference training, redeployment."""

__version__ = "0.1.0"
