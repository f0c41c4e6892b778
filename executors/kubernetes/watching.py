"""What a namespace holds of one kind: listed when asked once, watched while it is asked again and again.

A watch runs in the background and ends at the first trouble: a lost connection, or a server that no longer
remembers where it was (410 Gone). The next question is then answered by a list, and a new watch goes on from
there. So every answer is right as of the last event, and whoever asks need not know which it was.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemorun.executors.kubernetes.refusals import ApiError, Forbidden, Gone

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from nemorun.executors.kubernetes.api import Api

Object = dict[str, Any]

#: Seconds between two questions of someone who follows.
FOLLOWING = 30.0
#: Seconds after which the server is to end a watch, and we begin it anew: a connection that died without a
#: word (a laptop that slept) is noticed so.
WATCH = 45.0
_GRACE = 10.0
#: Seconds before a watch that broke is tried again.
_RETRY = 5.0
_PAGE = 500


@dataclass
class Known:
    """The objects of a kind with certain labels, by uid."""

    api: Api
    path: str
    labels: str
    objects: dict[str, Object] = field(default_factory=dict)
    deleted: dict[str, Object] = field(default_factory=dict)
    """As they were when they were deleted, where a watch saw it: how a pod ended may stand only there."""
    _version: str = ""
    _live: bool = False
    """A watch keeps it up to date."""
    _asked_at: float = float("-inf")
    _watch_at: float = 0.0
    _turn: int = 0
    """Of the lists: a watch that began before the last one has nothing more to say."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, fresh: bool = False) -> None:
        """Bring `objects` up to date; `fresh`: not by what a watch has seen. Raises ApiError."""
        now = time.monotonic()
        followed = now - self._asked_at < FOLLOWING
        self._asked_at = now
        if self._live and not fresh:
            return
        self._list()
        if followed and now >= self._watch_at:
            self._watch_at = now + _RETRY
            self._begin_to_watch()

    def _list(self) -> None:
        found: dict[str, Object] = {}
        query: dict[str, str | int] = {"labelSelector": self.labels, "limit": _PAGE}
        while True:
            try:
                answer = self.api.get(self.path, **query)
            except Gone:  # the pages took too long: from the first again
                found.clear()
                query.pop("continue", None)
                continue
            kind: Object = {
                key: answer[key].removesuffix("List") for key in ("apiVersion", "kind") if key in answer
            }
            for one in answer["items"]:  # which do not say themselves what they are
                found[one["metadata"]["uid"]] = _slim({**kind, **one})
            query["continue"] = answer["metadata"].get("continue") or ""
            if not query["continue"]:
                break
        with self._lock:
            self._turn += 1
            self._live = False
            self._version = answer["metadata"]["resourceVersion"]
            self.objects = found

    def _begin_to_watch(self) -> None:
        try:
            answer = self._open()
        except Forbidden:  # who may list, but not watch
            self._watch_at = float("inf")
        except ApiError:
            pass  # the next look lists, and says what is wrong if that is, too
        else:
            self._live = True
            threading.Thread(target=self._watch, args=(self._turn, answer), daemon=True).start()

    def _open(self) -> BaseHTTPResponse:
        return self.api.open(
            self.path,
            silence=WATCH + _GRACE,
            watch=1,
            labelSelector=self.labels,
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            timeoutSeconds=int(WATCH),
        )

    def _watch(self, turn: int, answer: BaseHTTPResponse) -> None:
        """Runs in a thread of its own, until something is wrong or nobody asks any more."""
        from urllib3.exceptions import HTTPError

        # what is wrong is found out by the next look
        with suppress(ApiError, HTTPError, OSError, ValueError):
            while True:
                with closing(answer):
                    if not all(self._take(turn, json.loads(line)) for line in _lines(answer)):
                        break
                if turn != self._turn or time.monotonic() - self._asked_at > 2 * FOLLOWING:
                    break
                answer = self._open()
        with self._lock:
            if turn == self._turn:
                self._live = False

    def _take(self, turn: int, event: Object) -> bool:
        """One event; False where the watch cannot go on from here."""
        kind, thing = event["type"], event["object"]
        with self._lock:
            if turn != self._turn or kind == "ERROR":
                return False
            self._version = thing["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                return True
            uid = thing["metadata"]["uid"]
            if kind == "DELETED":
                self.objects.pop(uid, None)
                self.deleted[uid] = _slim(thing)
            else:
                self.objects = (
                    {**self.objects, uid: _slim(thing)} if uid not in self.objects else self.objects
                )
                self.objects[uid] = _slim(thing)
        return True


def _slim(thing: Object) -> Object:
    """Without what fills half of an object, and tells nothing of how it stands."""
    thing["metadata"].pop("managedFields", None)
    return thing


def _lines(answer: BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for block in answer.stream(1 << 16):
        *lines, rest = (rest + block).split(b"\n")
        yield from filter(None, lines)


_known: dict[tuple[int, str, str], Known] = {}


def known(api: Api, path: str, labels: str) -> Known:
    """What this process knows of a kind; those that nobody asks for any more are forgotten."""
    key = (id(api), path, labels)
    old = time.monotonic() - 4 * FOLLOWING
    for other in [other for other, one in _known.items() if other != key and one._asked_at < old]:
        with suppress(KeyError):
            del _known[other]
    return _known.setdefault(key, Known(api, path, labels))
