"""One slot's life as a table: phases, what may happen in each, and what is then to be done. Pure values, no I/O."""
