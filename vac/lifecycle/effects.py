"""Effects: what the factory has to do for a slot, in the order given. Each can be the last one before a crash."""

from __future__ import annotations

import enum


class Effect(enum.Enum):
    """One thing to do; the value says it in the documentation's words."""

    PREPARE_CONTEXT = "prepare its context"
    MAKE_DIRECTORY = "make its directory and slot file"
    START = "start it"
    WRITE_STARTED = "write `started`"
    COUNT_CREATION = "count the creation"
    COUNT_FAILURE = "count the failed creation"
    REPORT_UNWANTED = "log that it isn't made"
    LOOK = "ask for a listing"
    RENEW_HEARTBEAT = "renew its heartbeat"
    LOWER_END = "lower its shutdown time"
    WRITE_MESSAGE = "write its shutdown message"
    STOP = "stop it"
    ACCOUNT = "write its end and its record"
    REMEMBER_END = "count and tell its end"
    RELEASE = "have its engine let go of it"
    COUNT_RELEASE = "count the release"
    COUNT_RELEASE_FAILURE = "count the failed release"
    REPORT_STUCK = "log that the slot stays taken"
    DISCARD = "discard its directory and slot file"
    GIVE_BACK_SCRATCH = "give back its scratch space"
