# Policy of the account that responds: ends single leases, looks whether they are gone, and contains service accounts. It lists no lease, ends
# nothing by prefix and, unless you let it, forces nothing. Only the `actions` workers need its secret. Where leases of other mounts are to be
# revoked, repeat the first rule for each of them.

# Ends one lease, named in the URL, so that the audit log has its id in plain text. Nothing but `sync` may be sent: an id in the body counts
# for more than that in the URL, and could be of any mount.
path "sys/leases/revoke/database/*" {
  capabilities       = ["update"]
  allowed_parameters = {
    "sync" = []
  }
}

# Only where people shall be able to make Vault forget a lease that it cannot revoke (docs/revoking.md): the database user then lives
# on until somebody drops it. Leasehold names one whole lease id; the rule itself would allow prefixes, so leave it out until it is needed.
# path "sys/leases/revoke-force/database/*" {
#   capabilities = ["update", "sudo"]
# }

# Whether the lease is gone: Vault answers 204 to a revocation even for a lease that it does not know.
path "sys/leases/lookup" {
  capabilities = ["update"]
}

# Where leases of child namespaces are to be revoked, too: the same two rules below each of them, here of all children. Write
# `path "team-a/…"` instead to name one.
# path "+/sys/leases/revoke/database/*" {
#   capabilities       = ["update"]
#   allowed_parameters = {
#     "sync" = []
#   }
# }
# path "+/sys/leases/lookup" {
#   capabilities = ["update"]
# }

# Where Vault has the password of the account that ends sessions of revoked leases (`respond = { static_role = … }` of a database in
# leasehold.toml): that credential and no other. A dynamic role (`respond = { role = … }`) needs `creds` instead of `static-creds`.
# path "database/static-creds/leasehold-respond" {
#   capabilities = ["read"]
# }

# -- Containing a service account (docs/containing.md). Leave these rules out where that is not wanted: revoking works without them.

# Under which name an auth mount knows a service account.
path "sys/auth" {
  capabilities = ["read"]
}
path "identity/lookup/entity" {
  capabilities = ["update"]
}

# Disabling an identity and enabling it again. Nothing else of it can be changed: whoever could write its policies could give
# himself any right.
path "identity/entity/id/+" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "disabled" = []
  }
}

# Finding its tokens and revoking them. No list says whose a token is, so each accessor is looked up; Vault demands sudo for
# the list. An accessor cannot be used to log in.
path "auth/token/accessors" {
  capabilities = ["list", "sudo"]
}
path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}
path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}

# Where auth mounts of child namespaces are tied to a cluster, the same six rules below each of them, as in
# path "+/identity/entity/id/+" { … }

# The account's own token: how long it lives, living longer, and what `manage.py doctor` says that it may do. The
# `default` policy grants the same; named here so that the account works without it.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
