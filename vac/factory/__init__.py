"""The factory: observes its engines, decides, acts; one loop, one thread that writes state."""

from vac.factory.process import main

__all__ = ["main"]
