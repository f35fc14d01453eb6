"""Decisions on machines to create: pure functions of configuration, slots, the space and the time."""
