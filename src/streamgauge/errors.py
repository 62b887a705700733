"""The one exception a user is meant to read."""


class StreamgaugeError(Exception):
    """Something a user can put right: what is wrong, where, and what to do about it.

    Args:
        problem: one sentence without a final stop, e.g. ``"layer 40 does not exist"``.
        where: the file, config key or artifact concerned.
        remedy: what to do, as a sentence.
    """

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None):
        self.problem, self.where, self.remedy = problem, where, remedy
        text = f"{where}: {problem}." if where else f"{problem}."
        super().__init__(f"{text} {remedy}" if remedy else text)

    def __reduce__(self):
        # keyword-only arguments survive a trip between processes
        return (_rebuild, (self.problem, self.where, self.remedy))


def _rebuild(problem, where, remedy):
    return StreamgaugeError(problem, where=where, remedy=remedy)
