"""What to create, where and when: pure functions of configuration, slots, the space and the time."""
