"""Errors of the lab: each says what is wrong and what to do about it."""


class LabError(Exception):
    """Something the person at the keyboard can act on."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\n  remedy: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class InventoryError(LabError):
    """The inventory cannot be read, or a value in it is not valid."""


class PrerequisiteError(LabError):
    """The machine lacks a program or a right that the lab needs."""


class CommandError(LabError):
    """A program that the lab ran failed; the message holds the end of its output."""


class NetworkError(LabError):
    """No network range is free, or the one in use clashes."""


class HostStateError(LabError):
    """The host is not in the state that the verb needs (not running, already frozen, ...)."""


class TimeoutExpired(LabError):
    """A host did not get where it should in time."""
