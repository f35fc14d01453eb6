"""Vac: a daemon that fills a node's processors with logical machines."""

__version__ = "4.0.0"
