"""Look at every order of events of a small model, and tell the shortest way to a broken promise."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Found(Generic[S]):
    """What a search saw. `broken` is None when every reachable state keeps every promise."""

    broken: str | None
    path: tuple[str, ...]
    states: int
    seconds: float
    is_whole: bool
    steps: frozenset[str] = field(default_factory=frozenset)

    @property
    def outcome(self) -> str:
        return self.broken or ("OK" if self.is_whole else "OK so far")


def explore(
    start: S,
    successors: Callable[[S], Iterable[tuple[str, S]]],
    broken: Callable[[S], str | None],
    states_max: int,
) -> Found[S]:
    """Search breadth first, so that the first counter-example is a shortest one.

    A step is named by its label up to the first colon. Cost: about a kilobyte a state.
    """
    began = time.monotonic()
    came_from: dict[S, tuple[S, str] | None] = {start: None}
    queue = deque([start])
    taken: set[str] = set()

    def told(bad: str | None, path: tuple[str, ...]) -> Found[S]:
        is_whole = not queue or bad is not None
        seconds = time.monotonic() - began
        return Found(bad, path, len(came_from), seconds, is_whole, frozenset(taken))

    while queue and len(came_from) < states_max:
        state = queue.popleft()
        for label, following in successors(state):
            if following in came_from:
                continue
            taken.add(label.partition(":")[0])
            came_from[following] = (state, label)
            bad = broken(following)
            if bad is not None:
                return told(bad, path_to(following, came_from))
            queue.append(following)
    return told(None, ())


def path_to(state: S, came_from: dict[S, tuple[S, str] | None]) -> tuple[str, ...]:
    """Return the labels that lead to a state."""
    path: list[str] = []
    step = came_from[state]
    while step is not None:
        path.append(step[1])
        step = came_from[step[0]]
    return tuple(reversed(path))
