"""What cannot be compiled, and why."""


class CannotFuse(Exception):
    """A solve that no kernel can be made for; the message says what stands in the way, and what to write instead."""


class FuncFails(CannotFuse):
    """The same, because func raises an error of its own, or returns what is no slope."""
