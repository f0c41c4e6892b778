"""What a Kubernetes API server refuses, as errors in plain words that say what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nemorun.errors import SubmitError

_METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PATH = re.compile(
    r"/apis?/(?:(?P<group>[^/]+\.[^/]+|batch|apps)/)?v[^/]+(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)
_MISSING = re.compile(r'User "(?P<user>[^"]*)" cannot ')


class ApiError(SubmitError):
    """The API server refused a request."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        said: str = "",
        passing: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP; 0 where there was no answer."""
        self.said = said
        """The server's own sentence."""
        self.passing = passing
        """May it be otherwise in a moment?"""
        self.retry_after = retry_after
        """Seconds that the server wants to be left alone."""


class Forbidden(ApiError):
    """The user lacks a right; the message names verb, resource and namespace."""


class NotFound(ApiError):
    """There is no such object, namespace or kind."""


class AlreadyExists(ApiError):
    """An object of that name is there."""


class Gone(ApiError):
    """A watch or a list was asked to go on from where the server no longer remembers."""


class Unreachable(ApiError):
    """The server was not reached: the request was not sent."""


class Lost(ApiError):
    """The request was sent, but whether the server obeyed is not known."""


def verb_of(method: str, path: str, query: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Verb, resource (with subresource), API group and namespace, as a role names them."""
    match = _PATH.match(path)
    if match is None:
        return method, path, "", ""
    one = match["name"] is not None
    verb = _METHODS.get(method) or ("get" if one else "watch" if query.get("watch") else "list")
    if verb == "delete" and not one:
        verb = "deletecollection"
    resource = match["resource"] + (f"/{match['sub']}" if match["sub"] else "")
    return verb, resource, match["group"] or "", match["namespace"] or ""


def refusal(
    method: str, path: str, query: Mapping[str, Any], status: int, body: bytes, retry_after: str | None = None
) -> ApiError:
    """The error for an answer that is none of success."""
    answer: dict[str, Any] = {}
    with suppress(ValueError):  # a proxy's page, say
        loaded = json.loads(body)
        answer = loaded if isinstance(loaded, dict) else {}
    said = str(answer.get("message") or body[:300].decode(errors="replace").strip() or "no reason given")
    reason = str(answer.get("reason", ""))
    wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    details = answer.get("details") or {}
    verb, resource, group, namespace = verb_of(method, path, query)
    where = f" in namespace '{namespace}'" if namespace else ""
    facts: dict[str, Any] = {"status": status, "said": said}

    missing = _MISSING.search(said)
    if status == 403 and missing and missing["user"] == "system:anonymous":
        return ApiError(
            f"the API server does not know who you are: your kubeconfig's context has no user who may {verb} "
            f"{resource}, or no way to log in",
            **facts,
        )
    if status == 401:
        return ApiError(
            f"the API server does not know who you are ({said}): log in to the cluster again, or look at the "
            "user of your kubeconfig's context",
            **facts,
        )
    if status == 403 and missing:
        of = f" of API group '{group}'" if group else ""
        return Forbidden(
            f"user '{missing['user']}' may not {verb} {resource}{where}: the role lacks the verb '{verb}' on "
            f"'{resource}'{of}; docs/kubernetes-rbac.yaml has all that are needed",
            **facts,
        )
    if status == 403:
        return Forbidden(f"the API server refuses to {verb} {resource}{where}: {said}", **facts)
    if status == 404:
        if not details.get("name") and not reason:
            words = f"the cluster does not know the kind '{resource}'" + (f" of '{group}'" if group else "")
            return NotFound(words, **facts)
        if details.get("kind") == "namespaces":
            return NotFound(f"there is no namespace '{details.get('name')}'", **facts)
        return NotFound(f"{said}{where}", **facts)
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(said, **facts)
    if status == 410:
        return Gone(said, **facts)
    if status == 422 or status == 400:
        return ApiError(f"the API server does not accept the manifest{where}: {said}", **facts)
    passing = status in (409, 429) or status >= 500
    kind = Lost if status >= 500 else ApiError
    words = f"the API server answered {status} to {verb} {resource}{where}: {said}"
    return kind(words, passing=passing, retry_after=min(wait, 20.0), **facts)
