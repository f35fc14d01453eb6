"""Names and addresses of a factory's slots. Imports nothing, so that check-vacd starts fast."""

from __future__ import annotations

_FIRST_SERVICE_ADDRESS = 253
"""169.254.169.253 and .254 are the factory's own."""


def slot_name(factory_name: str, number: int) -> str:
    """The host name of a slot's machines: slot 0 of factory1.example.com has factory1-00.example.com."""
    host, dot, domain = factory_name.partition(".")
    return f"{host}-{number:02d}{dot}{domain}"


def slot_number(factory_name: str, name: str) -> int | None:
    """The number of the slot whose machines have this name, or None if it is no slot of this factory."""
    digits = name.partition(".")[0].rpartition("-")[2]
    if not (digits.isascii() and digits.isdigit()):
        return None
    number = int(digits)
    return number if slot_name(factory_name, number) == name else None


def slot_address(number: int) -> str:
    """The address of a slot's VM: 169.254.169.N up to 252, then 169.254.170.0 onwards."""
    if number < _FIRST_SERVICE_ADDRESS:
        return f"169.254.169.{number}"
    third, fourth = divmod(number - _FIRST_SERVICE_ADDRESS, 256)
    return f"169.254.{170 + third}.{fourth}"


def address_slot(address: str) -> int | None:
    """The number of the slot whose VM has this address; None if it is no slot's."""
    words = address.split(".")
    if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) <= 3 for word in words):
        return None
    third, fourth = int(words[2]), int(words[3])
    number = fourth if third == 169 else _FIRST_SERVICE_ADDRESS + 256 * (third - 170) + fourth
    return number if number >= 0 and slot_address(number) == address else None
