"""Who may do what: users and RBAC rules, decided as the real server's RBAC authorizer does (cluster-wide bindings)."""

from dataclasses import dataclass, field
from typing import Any

from demo.kube import resources
from demo.kube.status import ApiError, Json, Resource
from demo.kube.store import Store


@dataclass(frozen=True, slots=True)
class User:
    """Who makes a request."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)


ADMIN = User("admin", "admin", ("system:masters", "system:authenticated"))
ANONYMOUS = User("system:anonymous", "", ("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is attempted; `path` only for what is not a resource (/version)."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


def allowed_by(store: Store, user: User, attempt: Attempt) -> str | None:
    """The reason for which it is allowed, or None."""
    for entry in store.all(resources.CLUSTER_ROLE_BINDINGS):
        binding = entry.object
        if not any(_is(subject, user) for subject in binding.get("subjects") or ()):
            continue
        role = store.find(resources.CLUSTER_ROLES, "", binding["roleRef"]["name"])
        if role and any(_permits(rule, attempt) for rule in role.get("rules") or ()):
            name, role_name = binding["metadata"]["name"], role["metadata"]["name"]
            return f'RBAC: allowed by ClusterRoleBinding "{name}" of ClusterRole "{role_name}"'
    return None


def forbidden(user: User, attempt: Attempt, resource: Resource | None) -> ApiError:
    """403 in the real server's words."""
    if attempt.path:
        message = f'forbidden: User "{user.name}" cannot {attempt.verb} path "{attempt.path}"'
        return ApiError(403, "Forbidden", message, {})
    what = f"{attempt.resource}/{attempt.subresource}" if attempt.subresource else attempt.resource
    qualified = resource.qualified if resource else attempt.resource
    where = f'in the namespace "{attempt.namespace}"' if attempt.namespace else "at the cluster scope"
    subject = f'{qualified} "{attempt.name}"' if attempt.name else qualified
    message = (
        f'{subject} is forbidden: User "{user.name}" cannot {attempt.verb} resource "{what}"'
        f' in API group "{attempt.group}" {where}'
    )
    details = {"name": attempt.name, "group": attempt.group, "kind": attempt.resource}
    return ApiError(403, "Forbidden", message, {key: value for key, value in details.items() if value})


def defaults() -> list[tuple[Resource, Json]]:
    """The roles and bindings that every cluster has and that matter here.

    https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings
    """
    authenticated, everybody = ["system:authenticated"], ["system:authenticated", "system:unauthenticated"]
    paths = {"system:discovery": ["/api", "/api/*", "/apis", "/apis/*"]}
    paths["system:public-info-viewer"] = ["/healthz", "/livez", "/readyz", "/version", "/version/"]
    paths["system:service-account-issuer-discovery"] = ["/.well-known/openid-configuration", "/openid/v1/jwks"]
    authentication, authorization = "authentication.k8s.io", "authorization.k8s.io"
    roles: list[tuple[str, list[Json], list[str]]] = [
        ("cluster-admin", [_rule("*", "*", "*"), {"verbs": ["*"], "nonResourceURLs": ["*"]}], ["system:masters"]),
        (
            "system:auth-delegator",
            [_rule("create", authentication, "tokenreviews"), _rule("create", authorization, "subjectaccessreviews")],
            [],
        ),
        ("system:basic-user", [_rule("create", authorization, "selfsubjectaccessreviews")], authenticated),
        ("system:discovery", [_paths_rule(paths["system:discovery"])], authenticated),
        ("system:public-info-viewer", [_paths_rule(paths["system:public-info-viewer"])], everybody),
        (
            "system:service-account-issuer-discovery",
            [_paths_rule(paths["system:service-account-issuer-discovery"])],
            ["system:serviceaccounts"],
        ),
    ]
    objects: list[tuple[Resource, Json]] = []
    for name, rules, groups in roles:
        objects.append((resources.CLUSTER_ROLES, {"metadata": {"name": name}, "rules": rules}))
        if groups:
            group = "rbac.authorization.k8s.io"
            subjects = [{"kind": "Group", "apiGroup": group, "name": member} for member in groups]
            reference = {"kind": "ClusterRole", "apiGroup": group, "name": name}
            binding = {"metadata": {"name": name}, "subjects": subjects, "roleRef": reference}
            objects.append((resources.CLUSTER_ROLE_BINDINGS, binding))
    return objects


def _rule(verb: str, group: str, resource: str) -> Json:
    return {"verbs": [verb], "apiGroups": [group], "resources": [resource]}


def _paths_rule(paths: list[str]) -> Json:
    return {"verbs": ["get"], "nonResourceURLs": paths}


def _is(subject: Json, user: User) -> bool:
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject.get('namespace')}:{subject['name']}"
    return bool(subject["name"] == user.name)


def _permits(rule: dict[str, Any], attempt: Attempt) -> bool:
    if not {"*", attempt.verb} & set(rule["verbs"]):
        return False
    if attempt.path:
        return any(
            path == attempt.path or (path.endswith("*") and attempt.path.startswith(path[:-1]))
            for path in rule.get("nonResourceURLs") or ()
        )
    wanted = {"*", attempt.resource}
    if attempt.subresource:
        wanted = {"*", f"{attempt.resource}/{attempt.subresource}", f"*/{attempt.subresource}"}
    names = rule.get("resourceNames") or [attempt.name]
    return bool(
        {"*", attempt.group} & set(rule.get("apiGroups") or ())
        and wanted & set(rule.get("resources") or ())
        and attempt.name in names
    )
