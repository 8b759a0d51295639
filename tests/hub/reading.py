"""The endpoints that leave everything as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .cards import front_matter
from .listing import entries, last_change
from .routing import route
from .store import File, Refusal, Repo
from .wire import Reply, Request, ranged

if TYPE_CHECKING:
    from .server import Hub


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Reply:
    user = hub.signed_in(request)
    token = {"displayName": "loopback", "role": "write"}
    return Reply.json(
        {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}}
    )


@route("GET", "/api/{kind}/{id}")
@route("GET", "/api/{kind}/{id}/revision/{rev}")
def info(hub: Hub, request: Request, kind: str, id: str, rev: str = "main") -> Reply:
    repo = hub.open(kind, id, request)
    commit = repo.at(rev)
    detailed = parse_qs(request.query).get("blobs") is not None
    siblings = [
        {"rfilename": path} | ({"size": len(file.content), "blobId": file.oid, "lfs": _lfs(file)} if detailed else {})
        for path, file in sorted(commit.files.items())
    ]
    card, _ = front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else (None, [])
    return Reply.json(
        {"id": id, "sha": commit.id, "private": repo.private, "author": repo.owner, "siblings": siblings}
        | {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "cardData": card or {}}
        | {"lastModified": commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
    )


@route("GET", "/api/{kind}/{id}/tree/{rev}")
@route("GET", "/api/{kind}/{id}/tree/{rev}/{path}")
def tree(hub: Hub, request: Request, kind: str, id: str, rev: str, path: str = "") -> Reply:
    repo = hub.open(kind, id, request)
    commit, query = repo.at(rev), parse_qs(request.query)
    recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
    found = [one for one in entries(commit.files, path) if recursive or "/" not in _below(one["path"], path)]
    if path and not found:
        raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
    return Reply.json(_dated(repo, rev, found, query.get("expand", ["false"])[0]))


@route("POST", "/api/{kind}/{id}/paths-info/{rev}")
def paths_info(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    repo = hub.open(kind, id, request)
    form = parse_qs(request.body.decode())
    wanted = {path.strip("/") for path in form.get("paths", [])}
    found = [one for one in entries(repo.at(rev).files) if one["path"] in wanted]
    return Reply.json(_dated(repo, rev, found, form.get("expand", ["false"])[0]))


@route("GET", "/api/{kind}/{id}/refs")
def refs(hub: Hub, request: Request, kind: str, id: str) -> Reply:
    repo = hub.open(kind, id, request)

    def named(prefix: str) -> list[dict[str, str]]:
        own = ((ref, target) for ref, target in repo.refs.items() if ref.startswith(prefix))
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": target} for ref, target in own]

    return Reply.json(
        {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": [], "pullRequests": []}
    )


@route("GET", "/api/{kind}/{id}/commits/{rev}")
def commits(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    return Reply.json(
        [
            {"id": one.id, "title": one.title, "message": one.message, "authors": [{"user": one.author}]}
            | {"date": one.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
            for one in hub.open(kind, id, request).history(rev)
        ]
    )


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Reply:
    card, errors = front_matter(request.json()["content"])
    warnings = [] if card or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    return Reply.json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


@route("GET HEAD", "/{prefix}{id}/resolve/{rev}/{path}")
def resolve(hub: Hub, request: Request, kind: str, id: str, rev: str, path: str) -> Reply:
    commit = hub.open(kind.strip("/") or "models", id, request).at(rev)
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(path)
    if file is None:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Reply(404, b"Entry not found", headers)
    headers["ETag"] = f'"{file.oid}"'
    if file.lfs:
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-ETag": f'"{file.sha256}"'}
    return ranged(file.content, request.headers.get("range"), headers)


def _dated(repo: Repo, rev: str, found: list[dict[str, Any]], expand: str) -> list[dict[str, Any]]:
    if expand.lower() not in ("true", "1"):
        return found
    return [one | {"lastCommit": last_change(repo.history(rev), one["path"])} for one in found]


def _lfs(file: File) -> dict[str, Any] | None:
    return {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)} if file.lfs else None


def _below(path: str, folder: str) -> str:
    return path[len(folder) + 1 :] if folder else path
