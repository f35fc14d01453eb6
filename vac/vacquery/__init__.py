"""VacQuery, the UDP load reports between factories: messages, responder, polls."""
