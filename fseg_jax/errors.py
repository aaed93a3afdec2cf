"""The exceptions that mean the user has to change something."""


class InputError(Exception):
    """Bad input: the message is one line that names the thing and says what to do.

    The command line prints it after ``fseg: error:`` and exits with code 2; nothing is left half-written.
    """


class OutputError(InputError):
    """Results cannot be written where they should go: whatever else goes there would fail as well."""
