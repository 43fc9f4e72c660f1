# Policy of the account that observes: what is live and how it is configured. It can neither read a credential nor end
# a lease, but for those that you let it: monitoring accounts. Where leases of other mounts are watched (`lease_mounts` in leasehold.toml), repeat the lines that name
# `database` for each of them.

# Times of one lease. Names the exact path, since a glob would be shadowed by the `default` policy's own entry for it.
path "sys/leases/lookup" {
  capabilities = ["update"]
}

# Which leases there are, folder by folder; Vault demands sudo for listing leases.
path "sys/leases/lookup/database/*" {
  capabilities = ["list", "sudo"]
}

# Leases that Vault has given up to revoke, each with its error; Vault demands sudo. Nothing else can be read there.
path "sys/leases" {
  capabilities = ["read", "sudo"]
}

# Where leases of child namespaces are watched too (`namespaces` in leasehold.toml): the same three rules below each of them, here
# of all children. Write `path "team-a/…"` instead to name one.
# path "+/sys/leases/lookup" {
#   capabilities = ["update"]
# }
# path "+/sys/leases/lookup/database/*" {
#   capabilities = ["list", "sudo"]
# }
# path "+/sys/leases" {
#   capabilities = ["read", "sudo"]
# }

# How an audit device would write a value: joins a lease id or a database user to lines of the log, where they stand hashed.
path "sys/audit-hash/*" {
  capabilities = ["update"]
}

# Which audit devices there are, so that one that nobody follows is noticed; Vault demands sudo. Without create and
# update this enables no device.
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

# Which databases the mount opens, and through which plugin. Vault never returns the passwords of connections.
path "database/config" {
  capabilities = ["list"]
}
path "database/config/+" {
  capabilities = ["read"]
}

# Which role opens which database, and its TTLs. Reading a role issues nothing; only database/creds/… would.
path "database/roles" {
  capabilities = ["list"]
}
path "database/roles/+" {
  capabilities = ["read"]
}

# Where Vault has the password of a monitoring account (`monitor = { static_role = … }` in leasehold.toml): that credential and no
# other. A dynamic role (`monitor = { role = … }`) needs `creds` instead of `static-creds`.
# path "database/static-creds/leasehold-monitor" {
#   capabilities = ["read"]
# }

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
