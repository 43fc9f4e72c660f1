"""What each kind of finding means, and what to do about it. docs/findings.md says the same at length."""

from audit.models.findings import FindingKind

K = FindingKind

# one sentence each: what it is, and why it matters
MEANS: dict[str, str] = {
    K.EXPLOSION: "A service account's live leases grow fast, or it holds far more than its pods and roles need.",
    K.OUTLIVES_POD: "A pod has ended and its lease still works: whoever copied the credentials can go on using them.",
    K.HOLDER_UNKNOWN: "Live credentials of which neither the service account nor the pod is known.",
    K.OVER_TTL: "Credentials that work for longer than leasehold.toml allows, as issued or by renewals.",
    K.IRREVOCABLE: "Vault tried to revoke and gave up. It forgets nothing, but tries no more.",
    K.ISSUED_TWICE: "One login, or one pod, reads one role twice in a row. Agents do this at start; each spare lease is a user in the database.",
    K.ROOT_TOKEN: "A token with the policy root may do everything, and no policy limits it.",
    K.STATIC_ROLE: "A static role has one database user for all readers: who used it when cannot be told apart, and no lease ends it.",
    K.DENIALS: "Somebody tries what its policies do not allow, again and again: a wrong policy, or somebody looking around.",
    K.ENTITY_CHANGED: "A disabled entity's tokens are refused at once, but its leases and database users stay.",
    K.DEVICE_DISABLED: "What Vault does from then on stands in no log of that device, and cannot be learned later.",
    K.DEVICE_ANEW: "A device that is enabled anew has a new salt: hashes from before match none from after.",
    K.RAW_DEVICE: "The device writes tokens or passwords in plain text. Leasehold stores none of it, and so sees nothing of this stream.",
    K.GAP: "Lines that Vault wrote, or must have written, were never read. What they told is known only if another stream told it.",
    K.LAG: "Lines wait to be read: the pages show an older state than they seem to.",
    K.WATCH_GAP: "While pods are not watched, an address cannot be tied to a pod for sure.",
    K.CONFLICT: "Two lines bear the same request id and say different things. One of them is not what Vault did.",
    K.REVOCATION_FAILED: "A person wanted this lease gone, and it is not proven that it is.",
    K.ELSEWHERE: "A session under this lease's database user came from where its holder was not: somebody else has the credential.",
    K.LOGIN_ELSEWHERE: "A service account's token was used to log in from where none of its pods was.",
    K.GHOST_USER: "A user that Vault made is still in the database, and no lease will ever end it.",
    K.NO_USER: "Vault still holds a lease whose database user is gone: the credential does not work, and whoever holds it may not know.",
    K.USER_VANISHED: "Dropping a user does not close its sessions: whoever has one goes on with what it may do.",
    K.BACK: "Somebody shut this service account out, and yet Vault has answered it since: it has a way in that was not closed.",
}

DO: dict[str, str] = {
    K.EXPLOSION: "Look at what the workload does at each start and each request: it should keep its credentials and renew them. "
    "Stop it before Vault or the database fills up, then revoke what it left behind.",
    K.OUTLIVES_POD: "Revoke the leases. For good: let the agent revoke its token when it stops (annotation "
    "vault.hashicorp.com/agent-revoke-on-shutdown), or give the role a shorter TTL.",
    K.HOLDER_UNKNOWN: "See why on each lease's page. Leases from before the audit log was read stay unknown until they end. Others: "
    "is the auth mount in leasehold.toml, and are all audit devices followed? What nobody claims can be revoked.",
    K.OVER_TTL: "Lower default_ttl and max_ttl of the role, then revoke the leases; or raise max_lease_ttl_seconds in "
    "leasehold.toml if this is meant.",
    K.IRREVOCABLE: "Read Vault's error on the lease's page, mend it in the database, then revoke the lease again. If the database user "
    "is gone already, revoke it with -force in Vault.",
    K.ISSUED_TWICE: "Often harmless: two templates of one agent that read the same path do it, and so do an injector's init container and its sidecar. "
    "Let the templates share one; an injector can leave one of its containers out (agent-pre-populate-only, or agent-pre-populate: false).",
    K.ROOT_TOKEN: "Find out who it is and whether it was planned. Then revoke the token (vault token revoke) and use accounts with policies.",
    K.STATIC_ROLE: "Use a dynamic role where the workload allows it. If this reader should not have it, rotate the role "
    "(database/rotate-role/NAME).",
    K.DENIALS: "If the paths look like the workload's own, mend its policy. If they do not, treat the identity as taken over: contain its "
    "service account.",
    K.ENTITY_CHANGED: "Disabled: revoke its leases too, they still work. Enabled again: ask who wanted that.",
    K.DEVICE_DISABLED: "Enable it again (OpenBao: in its configuration file, then SIGHUP), best under a new path, and name that in "
    "leasehold.toml. Ask whoever did it why. If it is not to come back, take it out of leasehold.toml.",
    K.DEVICE_ANEW: "Nothing is to be mended. Look at the stream's page for what is missing from the time between.",
    K.RAW_DEVICE: "Give the device a new path without log_raw, name that one in leasehold.toml, and treat the old file as a secret: "
    "every token in it should be revoked.",
    K.GAP: "The stream's page names each gap and its bounds. If the file still exists elsewhere (a backup, the node's disk), read it "
    "with manage.py ingest: what turns up closes gaps of Leasehold's own requests.",
    K.LAG: "See that the workers of the queue ingest run and have a processor to themselves; a pushed stream's shipper may be behind.",
    K.WATCH_GAP: "See that a worker of the queue watch runs and the cluster's API answers: the sources page names cause and fix.",
    K.CONFLICT: "Compare the two lines (the stream's page names them) with the file on the node. If a line was forged, the file was "
    "written by something other than Vault.",
    K.REVOCATION_FAILED: "Open the action: it says which step failed and what to do. Until then treat the credentials as usable.",
    K.ELSEWHERE: "If the address is that of NAT or a pooler, name it under nat or poolers of the database in leasehold.toml. Else treat the "
    "credential as stolen: revoke the lease, end its sessions in the database, and look at both ends that the evidence names.",
    K.LOGIN_ELSEWHERE: "Look at the leases that the login read. If the address is not yours, treat the service account's token as stolen: delete "
    "the pod that it is bound to, and contain the service account.",
    K.GHOST_USER: "See that nobody uses it, then drop it in the database (DROP OWNED BY and DROP ROLE). Forced revocations "
    "(revoke-force) leave such users behind, and so does a database that is restored from a backup.",
    K.NO_USER: "Find out who dropped the user. Revoke the lease, so that its holder reads a new one.",
    K.USER_VANISHED: "End the session in the database (pg_terminate_backend). For good: give Leasehold an account that does it when it revokes "
    "(respond, docs/databases.md), or let the role's revocation statements end them.",
    K.BACK: "Contain it again: what it came by is then found and disabled. Where that does not help (a token without an identity, an auth mount that "
    "makes an identity for each pod), take the service account out of the roles of that mount, or delete its pods.",
}
