"""What comes out: tasks that measure any model with the right capabilities, their controls, and the side-by-side report."""


class EvalError(Exception):
    """The evaluation is impossible; the message names the file or value, what was expected, and what to try."""
