"""What cannot be compiled, and why."""


class CannotFuse(Exception):
    """A solve that no kernel can be made for; the message says what stands in the way, and what to write instead."""
