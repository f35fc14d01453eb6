"""Hostile machines of each model, publishers of pipes and local accounts: rows of the table in docs/security.md."""
