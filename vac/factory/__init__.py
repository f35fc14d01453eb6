"""The factory: observes its engines, decides, acts; one loop, one thread that writes state."""
