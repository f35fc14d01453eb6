"""VacQuery: wire format, responder, poll."""
